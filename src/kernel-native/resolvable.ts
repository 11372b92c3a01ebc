/**
 * What the machine can resolve: istiod's table of names, or where it sends none, the hosts that have addresses. Names are
 * those that Istio's own agent answers (pkg/dns/client).
 */
import type { Frontend, Name } from "../mesh/model.ts";
import { sameName } from "../mesh/same.ts";
import type { NamesRecord } from "./resources/names.ts";

/** Where services of Kubernetes end when nobody says. */
const KUBERNETES = /^([^.]+)\.([^.]+)\.svc\.[^.]+(?:\..+)?$/;

/** Names of istiod's table; `namespace` is the machine's. */
export function namesOfTable(table: NamesRecord, namespace: string): Map<string, Name> {
  const names = new Map<string, Name>();
  for (const fqdn of table.addresses.keys()) {
    const name = nameOfTable(table, fqdn, namespace);
    if (name) names.set(name.host, name);
  }
  return names;
}

/**
 * Brings `names` up to date with istiod's table. `before` is the table that was applied last: of a table that was read as a
 * difference to it only the difference is looked at. Adds to `changed` the hosts that differ.
 */
export function applyTable(
  names: Map<string, Name>,
  table: NamesRecord,
  before: NamesRecord | undefined,
  namespace: string,
  changed: Set<string>,
): void {
  if (table.since === undefined || table.since.version !== before?.version) {
    applyNames(names, namesOfTable(table, namespace), changed);
    return;
  }
  for (const host of table.since.changed) put(names, host, nameOfTable(table, host, namespace), changed);
}

/** Makes `names` these; adds to `changed` the hosts that differ. */
export function applyNames(
  names: Map<string, Name>,
  now: ReadonlyMap<string, Name>,
  changed: Set<string>,
): void {
  for (const host of names.keys()) if (!now.has(host)) put(names, host, undefined, changed);
  for (const [host, name] of now) put(names, host, name, changed);
}

function put(names: Map<string, Name>, host: string, name: Name | undefined, changed: Set<string>): void {
  const before = names.get(host);
  if (name === undefined ? before === undefined : before !== undefined && sameName(before, name)) return;
  if (name === undefined) names.delete(host);
  else names.set(host, name);
  changed.add(host);
}

/** One name of istiod's table; undefined when it has no address. */
function nameOfTable(table: NamesRecord, fqdn: string, namespace: string): Name | undefined {
  const addresses = table.addresses.get(fqdn);
  if (!addresses) return undefined;
  const kubernetes = table.kubernetes.get(fqdn);
  const aliases = kubernetes ? shortForms(kubernetes.shortName, kubernetes.namespace, namespace) : [];
  return { host: canonicalHost(fqdn), addresses, aliases };
}

/** Names of the hosts of frontends with an address. */
export function namesOfFrontends(frontends: Iterable<Frontend>, namespace: string): Map<string, Name> {
  const found = new Map<string, Set<string>>();
  for (const { match, service } of frontends) {
    if (match.kind !== "address") continue;
    const host = canonicalHost(service.slice(0, service.lastIndexOf(":")));
    // The service of what belongs to none is called by its address.
    if (host === "*" || !/[a-z_]/.test(host) || host.includes(":")) continue;
    const addresses = found.get(host);
    if (addresses) addresses.add(match.address);
    else found.set(host, new Set([match.address]));
  }
  const names = new Map<string, Name>();
  for (const [host, addresses] of found) {
    const [, shortName, own] = KUBERNETES.exec(host) ?? [];
    const aliases = shortName && own ? shortForms(shortName, own, namespace) : [];
    names.set(host, { host, addresses: [...addresses].sort(), aliases });
  }
  return names;
}

function shortForms(shortName: string, namespace: string, own: string): string[] {
  const short = canonicalHost(shortName);
  const forms = [`${short}.${namespace}`, `${short}.${namespace}.svc`];
  return namespace === own ? [short, ...forms] : forms;
}

function canonicalHost(host: string): string {
  const lower = host.toLowerCase();
  return lower.endsWith(".") ? lower.slice(0, -1) : lower;
}
