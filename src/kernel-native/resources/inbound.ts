/**
 * `virtualInbound`: this machine's service ports, their mutual TLS and the authorization policies, which istiod sends as
 * RBAC filters of each port's chains. What the kernel can't know when a connection begins (HTTP or not, headers) refuses
 * where it may have refused.
 */
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { parsePrefix } from "../../mesh/address.ts";
import type { Condition, Inbound, MtlsMode, Policy, TextMatch } from "../../mesh/inbound.ts";
import type { Note } from "../../mesh/model.ts";
import { envoy } from "./envoy.gen.js";
import { note } from "./note.ts";
import { decodeAny, messageName } from "./wire.ts";

const PEER_PRINCIPAL = "io.istio.peer_principal";
const LOG = 2;
const ANYTHING: Condition = { kind: "all", of: [] };

/** One RBAC filter: whoever it does not admit is refused. */
interface Gate {
  policies: Policy[];
}

interface Side {
  plaintext: boolean;
  tls: boolean;
  /** The gates of each chain. */
  chains: Gate[][];
}

/** Throws MalformedResource for a policy that contradicts itself, and what a protobuf reader throws. */
export function inboundOf(resource: string, listener: envoy.Listener): { inbound: Inbound; notes: Note[] } {
  /** By port; 0: all others. */
  const sides = new Map<number, Side>();
  const domains = new Set<string>();
  for (const chain of listener.filterChains) {
    if ((chain.name ?? "").endsWith("blackhole")) continue;
    const port = chain.filterChainMatch?.destinationPort?.value ?? 0;
    const side: Side = sides.get(port) ?? { plaintext: false, tls: false, chains: [] };
    sides.set(port, side);
    // A chain without a transport protocol also accepts plaintext, unless it has a TLS socket.
    if (chain.filterChainMatch?.transportProtocol === "tls" || chain.transportSocket) side.tls = true;
    else side.plaintext = true;
    side.chains.push(gatesOf(resource, chain));
    for (const domain of trustDomainsOf(chain)) domains.add(domain);
  }
  const ports = [...sides.keys()].filter((port) => port !== 0).sort((a, b) => a - b);
  const byDefault = modeOf(sides.get(0));
  const inbound: Inbound = {
    ports,
    mtls: {
      default: byDefault,
      ports: ports.flatMap((port) => {
        const mode = modeOf(sides.get(port));
        return mode === byDefault ? [] : [{ port, mode }];
      }),
    },
    policies: policiesOf(ports.map((port) => ({ port, chains: sides.get(port)?.chains ?? [] }))),
    ...(domains.size > 0 && { trustDomains: [...domains].sort() }),
  };
  return { inbound, notes: [...notesOf(inbound), ...notesOfOthers(sides.get(0), ports)] };
}

/** MeshConfig's trustDomain and trustDomainAliases, which istiod sends as SANs that callers must have. */
function trustDomainsOf({ transportSocket }: envoy.FilterChain.$Properties): string[] {
  const config = transportSocket?.typedConfig;
  if (!config || messageName(config) !== "DownstreamTlsContext") return [];
  const common = decodeAny(envoy.DownstreamTlsContext, config).commonTlsContext;
  const validation = common?.combinedValidationContext?.defaultValidationContext ?? common?.validationContext;
  const typed = (validation?.matchTypedSubjectAltNames ?? []).map(({ matcher }) => matcher);
  return [...(validation?.matchSubjectAltNames ?? []), ...typed].flatMap((matcher) => {
    const [, domain] = /^spiffe:\/\/([^/]+)\/$/.exec(matcher?.prefix ?? "") ?? [];
    return domain === undefined ? [] : [domain];
  });
}

/** What would hold for ports that are no service's, were they governed. */
function notesOfOthers(side: Side | undefined, ports: readonly number[]): Note[] {
  const what = [
    ...(modeOf(side) === "strict" ? ["STRICT mutual TLS"] : []),
    ...(side?.chains.some((gates) => gates.length > 0) ? ["authorization policies"] : []),
  ];
  if (what.length === 0) return [];
  const where = ports.length === 0 ? "it has none" : ports.join(", ");
  return [
    note(
      "not-enforced",
      `inbound ${what.join(" and ")}: enforced at the ports of this machine's services (${where}), at no others`,
    ),
  ];
}

function modeOf(side: Side | undefined): MtlsMode {
  if (!side?.tls) return side ? "disable" : "permissive";
  return side.plaintext ? "permissive" : "strict";
}

/**
 * The policies of all ports. The kernel does not know which of a port's chains a connection would take, so it must pass the
 * gates of all: a gate that differs from the first of its kind becomes a DENY of what it does not allow.
 */
function policiesOf(ports: readonly { port: number; chains: readonly Gate[][] }[]): Policy[] {
  const found = new Map<string, { policy: Policy; ports: number[] }>();
  for (const { port, chains } of ports) {
    const gates = new Map(
      chains.flat().map((gate) => [JSON.stringify(gate.policies), gate.policies] as const),
    );
    let allowing = false;
    const own = new Map<string, Policy>();
    const add = (policy: Policy) => own.set(JSON.stringify(policy), policy);
    for (const policies of gates.values()) {
      const allow = policies.filter(({ action }) => action === "allow");
      for (const policy of policies) if (policy.action === "deny") add(policy);
      if (allow.length > 0 && allowing) add(refusalOfOthers(allow));
      else for (const policy of allow) add(policy);
      allowing ||= allow.length > 0;
    }
    for (const [key, policy] of own) {
      const known = found.get(key) ?? { policy, ports: [] };
      known.ports.push(port);
      found.set(key, known);
    }
  }
  return [...found.values()].map(({ policy, ports: governed }) =>
    governed.length === ports.length ? policy : { ...policy, ports: governed },
  );
}

function refusalOfOthers(allow: readonly Policy[]): Policy {
  const of = allow.flatMap(({ rules }) => rules.map(({ when }) => when));
  const when: Condition = { kind: "not", of: { kind: "any", of } };
  return {
    name: allow[0]?.name ?? "",
    action: "deny",
    rules: [{ name: "allowed by no rule for another protocol of this port", when }],
  };
}

function gatesOf(resource: string, chain: envoy.FilterChain.$Properties): Gate[] {
  const gates: Gate[] = [];
  let external = false;
  let externalRules = false;
  const add = (config: envoy.Any.$Properties | null | undefined, http: boolean) => {
    const message = messageName(config);
    if (!config) return;
    if (message === "ExtAuthz") external = true;
    if (message !== "RBAC") return;
    const filter = decodeAny<envoy.NetworkRbac | envoy.HttpRbac>(
      http ? envoy.HttpRbac : envoy.NetworkRbac,
      config,
    );
    // A CUSTOM policy: its rules say for whom somebody else is asked, which kmesh can't do.
    if (filter.shadowRules && /ext_authz/.test(filter.shadowRulesStatPrefix)) {
      externalRules = true;
      gates.push(gateOf(resource, { ...filter.shadowRules, action: 1 }, http));
    }
    if (filter.matcher) gates.push(refusing("an authorization matcher that kmesh does not know"));
    if (filter.rules) gates.push(gateOf(resource, filter.rules, http));
  };
  for (const filter of chain.filters ?? []) {
    const message = messageName(filter.typedConfig);
    if (message !== "HttpConnectionManager") {
      add(filter.typedConfig, false);
      continue;
    }
    const http = filter.typedConfig ? decodeAny(envoy.HttpConnectionManager, filter.typedConfig) : undefined;
    for (const each of http?.httpFilters ?? []) add(each.typedConfig, true);
  }
  if (external && !externalRules) gates.push(refusing("an external authorizer"));
  return gates.filter(({ policies }) => policies.length > 0);
}

function refusing(name: string): Gate {
  return { policies: [{ name, action: "deny", rules: [{ name: "it can't be evaluated", when: ANYTHING }] }] };
}

function gateOf(resource: string, rbac: envoy.Rbac.$Properties, http: boolean): Gate {
  const action = rbac.action ?? 0;
  if (action === LOG) return { policies: [] };
  if (action > LOG) throw new MalformedResource(resource, `an RBAC filter has the unknown action ${action}`);
  const policies = new Map<string, { name: string; when: Condition }[]>();
  for (const [key, policy] of Object.entries(rbac.policies ?? {}).sort(([a], [b]) => (a < b ? -1 : 1))) {
    const { name, rule } = nameOf(key);
    const rules = policies.get(name) ?? [];
    rules.push({ name: rule, when: ruleOf(resource, policy, http) });
    policies.set(name, rules);
  }
  if (action === 0 && policies.size === 0) policies.set("an ALLOW policy without rules", []);
  return {
    policies: [...policies].map(([name, rules]) => ({
      name,
      action: action === 1 ? "deny" : "allow",
      rules,
    })),
  };
}

/** `ns[shop]-policy[deny]-rule[0]`: shop/deny and rule[0]. */
function nameOf(key: string): { name: string; rule: string } {
  const [, namespace, policy, rule] = /^ns\[(.*)\]-policy\[(.*)\]-(rule\[\d+\])$/.exec(key) ?? [];
  if (namespace === undefined || policy === undefined || rule === undefined)
    return { name: key, rule: "rule" };
  return { name: `${namespace}/${policy}`, rule };
}

function ruleOf(resource: string, policy: envoy.RbacPolicy.$Properties, http: boolean): Condition {
  const of: Condition[] = [
    any((policy.permissions ?? []).map((each) => permissionOf(resource, each))),
    any((policy.principals ?? []).map((each) => principalOf(resource, each, http))),
  ];
  if (policy.condition || policy.checkedCondition) of.push(unknown("a CEL condition"));
  return all(of);
}

function permissionOf(resource: string, permission: envoy.Permission.$Properties): Condition {
  const { andRules, orRules, destinationIp, destinationPort, notRule, destinationPortRange } = permission;
  if (andRules) return all((andRules.rules ?? []).map((each) => permissionOf(resource, each)));
  if (orRules) return any((orRules.rules ?? []).map((each) => permissionOf(resource, each)));
  if (notRule) return { kind: "not", of: permissionOf(resource, notRule) };
  if (destinationIp) return { kind: "destination", prefixes: [prefixOf(resource, destinationIp)] };
  if (typeof destinationPort === "number") return portOf(resource, destinationPort, destinationPort);
  if (destinationPortRange)
    return portOf(resource, destinationPortRange.start ?? 0, (destinationPortRange.end ?? 0) - 1);
  return permission.any ? ANYTHING : unknown("a condition on the request");
}

function principalOf(resource: string, principal: envoy.Principal.$Properties, http: boolean): Condition {
  const { andIds, orIds, notId, authenticated, sourceIp, directRemoteIp, remoteIp, filterState } = principal;
  if (andIds) return all((andIds.ids ?? []).map((each) => principalOf(resource, each, http)));
  if (orIds) return any((orIds.ids ?? []).map((each) => principalOf(resource, each, http)));
  if (notId) return { kind: "not", of: principalOf(resource, notId, http) };
  if (authenticated) return identityOf(authenticated.principalName);
  if (filterState?.key === PEER_PRINCIPAL) return identityOf(filterState.stringMatch);
  const direct = directRemoteIp ?? sourceIp;
  if (direct) return { kind: "source", prefixes: [prefixOf(resource, direct)] };
  // In HTTP it may come from a header.
  if (remoteIp && !http) return { kind: "source", prefixes: [prefixOf(resource, remoteIp)] };
  return principal.any ? ANYTHING : unknown("a condition on the request");
}

const PRESENT: Condition = { kind: "principal", match: [{ kind: "presence" }] };
const SCHEME = /^spiffe:\/\//;

/** A match of the peer's SPIFFE id. istiod writes some as regular expressions, of which these forms are known. */
function identityOf(match: envoy.RbacText.$Properties | null | undefined): Condition {
  if (!match) return PRESENT;
  const { exact, prefix, suffix, contains, safeRegex, ignoreCase } = match;
  const regex = safeRegex?.regex;
  if (!ignoreCase && !contains) {
    if (exact) return principal({ kind: "exact", value: exact.replace(SCHEME, "") });
    if (prefix && SCHEME.test(prefix)) {
      const value = prefix.replace(SCHEME, "");
      return value === "" ? PRESENT : principal({ kind: "prefix", value });
    }
    if (suffix && !suffix.includes("spiffe:")) return principal({ kind: "suffix", value: suffix });
    if (regex === ".+" || regex === ".*") return PRESENT;
    const [, namespace] = /^\.\*\/ns\/(.+)\/\.\*$/.exec(regex ?? "") ?? [];
    const text = namespace === undefined ? undefined : patternOf(namespace);
    if (text) return { kind: "namespace", match: [text] };
    const [, of, account] =
      /^spiffe:\/\/\.\+\/ns\/([^()]+)\/\(\.\+\/\|\)sa\/([^()]+)\(\/\.\+\)\?$/.exec(regex ?? "") ?? [];
    const [accountNamespace, name] = [literalOf(of), literalOf(account)];
    if (accountNamespace !== undefined && name !== undefined)
      return { kind: "service-account", accounts: [{ namespace: accountNamespace, name }] };
    const [, end] = /^spiffe:\/\/\.\*(.+)$/.exec(regex ?? "") ?? [];
    const value = literalOf(end);
    if (value !== undefined) return principal({ kind: "suffix", value });
  }
  // Without an identity it does not match, whatever it says.
  return all([PRESENT, unknown(`the identity match ${regex || contains || "of another form"}`)]);
}

function principal(match: TextMatch): Condition {
  return { kind: "principal", match: [match] };
}

/** `a`, `a.*`, `.*a` or `.*`, where a has no special character that is not escaped. */
function patternOf(regex: string): TextMatch | undefined {
  if (regex === ".*") return { kind: "presence" };
  const kind = regex.startsWith(".*") ? "suffix" : regex.endsWith(".*") ? "prefix" : "exact";
  const bare = kind === "suffix" ? regex.slice(2) : kind === "prefix" ? regex.slice(0, -2) : regex;
  const value = literalOf(bare);
  return value === undefined ? undefined : { kind, value };
}

/** The text that a regular expression without special characters matches. */
function literalOf(regex: string | undefined): string | undefined {
  if (regex === undefined || !/^(?:\\[^\w\s]|[^\\.+*?()|[\]{}^$])+$/.test(regex)) return undefined;
  return regex.replace(/\\(.)/g, "$1");
}

function prefixOf(resource: string, range: envoy.CidrRange.$Properties): string {
  const text = `${range.addressPrefix ?? ""}/${range.prefixLen?.value ?? 0}`;
  const prefix = parsePrefix(text);
  if (!prefix)
    throw new MalformedResource(resource, `an RBAC filter has ${text}, which is not an address block`);
  return `${prefix.address}/${prefix.length}`;
}

function portOf(resource: string, from: number, to: number): Condition {
  if (from < 0 || from > 65535 || to > 65535)
    throw new MalformedResource(resource, `an RBAC filter has the ports ${from} to ${to}`);
  return { kind: "port", ranges: [{ from, to: Math.max(to, 0) }] };
}

function unknown(text: string): Condition {
  return { kind: "unknown", text };
}

function all(of: Condition[]): Condition {
  return of.length === 1 && of[0] ? of[0] : { kind: "all", of };
}

function any(of: Condition[]): Condition {
  return of.length === 1 && of[0] ? of[0] : { kind: "any", of };
}

/** What is enforced in a stricter way than it is written. */
export function notesOf({ policies }: Inbound): Note[] {
  const notes = new Map<string, Note>();
  for (const { name, action, rules } of policies) {
    const texts = new Set(rules.flatMap(({ when }) => unknownsOf(when)));
    if (texts.size === 0) continue;
    const effect =
      action === "deny" ? "it denies as if they matched" : "it allows nothing by the rules that have them";
    const text = `policy ${name}: ${[...texts].join(", ")} can't be evaluated for a connection: ${effect}`;
    notes.set(text, note("layer7", text));
  }
  return [...notes.values()];
}

function unknownsOf(condition: Condition): string[] {
  if (condition.kind === "unknown") return [condition.text];
  if (condition.kind === "all" || condition.kind === "any") return condition.of.flatMap(unknownsOf);
  return condition.kind === "not" ? unknownsOf(condition.of) : [];
}
