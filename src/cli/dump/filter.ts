/**
 * Filters of `kmesh dump`, like those of `istioctl proxy-config`. They work on the received configuration, the model and
 * the kernel's tables. Each of those is an object of sections; a section is a list, or an object keyed by name.
 */
import { parseClusterName, parseHostPort } from "../../kernel-native/resources/service.ts";

/** All sections of all parts. */
export const SECTIONS = [
  "listeners",
  "routes",
  "clusters",
  "endpoints",
  "names",
  "services",
  "frontends",
  "splits",
  "workloads",
  "authorizations",
  "inbound",
] as const;

/** An element is printed when it matches all given filters. */
export interface Filter {
  /** Sections; empty for all. */
  types: readonly string[];
  /** The exact name of a cluster, listener, route configuration, service or split, or a frontend's `ADDRESS:PORT`. */
  name?: string;
  /** Part of the host name. */
  fqdn?: string;
  port?: number;
  direction?: string;
  subset?: string;
  /** An address of the element or of its destination, as written. */
  address?: string;
}

/** The names, hosts, ports and addresses of an element. */
interface Facts {
  names: Set<string>;
  hosts: Set<string>;
  ports: Set<number>;
  directions: Set<string>;
  subsets: Set<string>;
  addresses: Set<string>;
}

type Json = unknown;
type Fields = Record<string, Json>;

export function isEmpty({ types, ...others }: Filter): boolean {
  return types.length === 0 && Object.values(others).every((value) => value === undefined);
}

/** The selected sections of `dump` (plain JSON) with the matching elements. Empty sections are left out. */
export function filterDump(dump: Fields, filter: Filter): Fields {
  const result: Fields = {};
  for (const [section, elements] of Object.entries(dump)) {
    if (!(SECTIONS as readonly string[]).includes(section)) continue;
    if (filter.types.length > 0 && !filter.types.includes(section)) continue;
    const kept = filterSection(section, elements, filter);
    if (kept !== undefined) result[section] = kept;
  }
  return result;
}

function filterSection(section: string, elements: Json, filter: Filter): Json | undefined {
  if (Array.isArray(elements)) {
    const kept = elements.filter((element) => fits(factsOf(section, "", element), filter));
    return kept.length > 0 ? kept : undefined;
  }
  if (!isFields(elements)) return undefined;
  const kept: Fields = {};
  for (const [key, element] of Object.entries(elements)) {
    const found =
      section === "routes" && Array.isArray(element)
        ? virtualHosts(key, element, filter)
        : fits(factsOf(section, key, element), filter)
          ? element
          : undefined;
    if (found !== undefined) kept[key] = found;
  }
  return Object.keys(kept).length > 0 ? kept : undefined;
}

/** A route configuration with the matching virtual hosts only. */
function virtualHosts(routes: string, hosts: readonly Json[], filter: Filter): Json[] | undefined {
  const port = /^\d+$/.test(routes) ? Number(routes) : undefined;
  const kept = hosts.filter((host) => {
    const facts = factsOf("routes", "", host);
    facts.names.add(routes);
    if (port !== undefined) facts.ports.add(port);
    return fits(facts, filter);
  });
  return kept.length > 0 ? kept : undefined;
}

function fits(facts: Facts, { name, fqdn, port, direction, subset, address }: Filter): boolean {
  if (name !== undefined && !facts.names.has(name)) return false;
  if (fqdn !== undefined && ![...facts.hosts].some((host) => host.includes(fqdn))) return false;
  if (port !== undefined && !facts.ports.has(port)) return false;
  if (direction !== undefined && !facts.directions.has(direction)) return false;
  if (subset !== undefined && !facts.subsets.has(subset)) return false;
  return address === undefined || facts.addresses.has(address);
}

function factsOf(section: string, key: string, element: Json): Facts {
  const facts: Facts = {
    names: new Set(),
    hosts: new Set(),
    ports: new Set(),
    directions: new Set(),
    subsets: new Set(),
    addresses: new Set(),
  };
  if (key !== "") addName(facts, key.replace(/^tcp /, ""));
  if (section === "names")
    for (const one of asList(element)) if (typeof one === "string") facts.addresses.add(one);
  if (!isFields(element)) return facts;
  const { name, service, host, port, match, target, kind, direction } = element;
  for (const text of [name, service, host]) if (typeof text === "string") addName(facts, text);
  // The port of a port override is the destination's.
  if (typeof port === "number" && port > 0) facts.ports.add(port);
  if (section === "listeners") facts.directions.add(kind === "inbound" ? "inbound" : "outbound");
  if (typeof direction === "string") facts.directions.add(direction);
  if (typeof match === "string") addMatch(facts, match);
  else if (isFields(match)) addPlace(facts, match);
  // The port that apps connect to, not the port of the target cluster.
  const ports = new Set(facts.ports);
  if (typeof target === "string") addName(facts, target);
  else if (isFields(target))
    for (const text of [target.cluster, target.split]) if (typeof text === "string") addName(facts, text);
  if (target !== undefined) facts.ports = ports;
  for (const one of asList(element.addresses)) {
    if (typeof one === "string") facts.addresses.add(one);
    else if (isFields(one)) addPlace(facts, one);
  }
  addEndpoints(facts, element);
  return facts;
}

/** Names contain hosts and ports: `outbound|80|v1|a.shop`, `a.shop:80`. */
function addName(facts: Facts, name: string): void {
  facts.names.add(name);
  const cluster = parseClusterName(name);
  if (cluster !== undefined) {
    facts.hosts.add(cluster.host);
    facts.ports.add(cluster.port);
    facts.directions.add(cluster.direction);
    if (cluster.subset !== "") facts.subsets.add(cluster.subset);
    return;
  }
  const { host, port } = parseHostPort(name);
  facts.hosts.add(host);
  if (port > 0) facts.ports.add(port);
}

/** `10.0.0.1:80`, `[fd00::1]:80`, `10.1.0.0/16:80`, `*:80` */
function addMatch(facts: Facts, match: string): void {
  facts.names.add(match);
  const { host, port } = parseHostPort(match);
  facts.addresses.add(host.replace(/^\[|\]$/g, ""));
  if (port > 0) facts.ports.add(port);
}

function addPlace(facts: Facts, { address, port }: Fields): void {
  if (typeof address === "string") facts.addresses.add(address);
  if (typeof port === "number" && port > 0) facts.ports.add(port);
}

/** Takes addresses only: the port of an endpoint is not the port that apps connect to. */
function addEndpoints(facts: Facts, element: Fields): void {
  const { localities, endpoints, discovery } = element;
  for (const locality of asList(localities)) if (isFields(locality)) addEndpoints(facts, locality);
  for (const one of asList(endpoints)) {
    if (isFields(one) && typeof one.address === "string") facts.addresses.add(one.address);
  }
  if (isFields(discovery) && isFields(discovery.endpoints)) addEndpoints(facts, discovery.endpoints);
}

function asList(value: Json): readonly Json[] {
  return Array.isArray(value) ? value : [];
}

function isFields(value: Json): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
