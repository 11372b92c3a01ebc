/**
 * RDS: virtual hosts, flattened to what connect() can use: their addresses, and the destination of a connection
 * before its first request.
 */
import protobuf from "protobufjs/minimal.js";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { canonicalAddress, type Prefix, parsePrefix } from "../../mesh/address.ts";
import type { Note } from "../../mesh/model.ts";
import { envoy } from "./envoy.gen.js";
import { NO_NOTES, type Notes, note, sortedNotes } from "./note.ts";
import { ownCluster, parseHostPort } from "./service.ts";
import { checkName, decodeAny, guarded, seconds, shortName } from "./wire.ts";

export interface RoutesRecord {
  hosts: readonly VirtualHostRecord[];
}

/** The destination of connections. */
export type Destination =
  | { kind: "cluster"; cluster: string }
  | { kind: "shares"; shares: readonly { cluster: string; weight: number }[] };

export interface VirtualHostRecord {
  /** `host:port` as istiod names virtual hosts; other control planes may use any text. */
  name: string;
  host: string;
  /** 0 when the name has none. */
  port: number;
  /** Its IP domains, canonical. */
  addresses: readonly string[];
  /** Its CIDR domains. */
  prefixes: readonly Prefix[];
  /** Matches requests that match no other virtual host (`*`). */
  everything: boolean;
  /** A Kubernetes headless service: it also has the domains of its pods. */
  headless: boolean;
  destination: Destination;
  /** The route hashes the source address, so that connect() can apply consistent hashing. */
  hashesSource: boolean;
  notes: Notes;
}

const NO_ADDRESSES: readonly string[] = [];
const NO_PREFIXES: readonly Prefix[] = [];
/** The largest sum of weights that Envoy accepts. */
const WEIGHT_LIMIT = 0xffff_ffff;
/** istiod's default retry_on, when no retries are configured. */
const DEFAULT_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

/** Flattens one RouteConfiguration, virtual host by virtual host. Throws MalformedResource. */
export function flattenRoutes(resource: string, bytes: Uint8Array): RoutesRecord {
  checkName(resource, resource);
  return guarded(resource, () => {
    const reader = protobuf.Reader.create(bytes);
    const hosts: VirtualHostRecord[] = [];
    let name = "";
    while (reader.pos < reader.len) {
      const tag = reader.uint32();
      if (tag === 10) name = reader.string();
      else if (tag === 18) {
        hosts.push(flattenHost(resource, envoy.VirtualHost.decode(reader, reader.uint32())));
      } else reader.skipType(tag & 7);
    }
    checkName(resource, name);
    return { hosts };
  });
}

/** Flattens routes inside a listener. Throws MalformedResource. */
export function flattenInlineRoutes(
  resource: string,
  routes: envoy.RouteConfiguration.$Properties,
): RoutesRecord {
  return { hosts: (routes.virtualHosts ?? []).map((host) => flattenHost(resource, host)) };
}

function flattenHost(resource: string, host: envoy.VirtualHost.$Properties): VirtualHostRecord {
  const name = host.name ?? "";
  if (name === "") throw new MalformedResource(resource, "a virtual host has no name");
  const { host: hostname, port } = parseHostPort(name);
  const addresses: string[] = [];
  const prefixes: Prefix[] = [];
  let everything = false;
  let headless = false;
  for (const domain of host.domains ?? []) {
    if (domain === "*") everything = true;
    else if (domain === `*.${hostname}`) headless = true;
    const found = parseDomain(domain);
    if (found === undefined) continue;
    if (typeof found === "string") addresses.push(found);
    else prefixes.push(found);
  }
  const decision = decide(resource, host, hostname, port);
  return {
    name,
    host: hostname,
    port,
    addresses: addresses.length === 0 ? NO_ADDRESSES : addresses,
    prefixes: prefixes.length === 0 ? NO_PREFIXES : prefixes,
    everything,
    headless,
    ...decision,
  };
}

/** The address or block of a domain such as `10.0.0.1`, `[fd00::1]:80` or `[fd00::/64]`; undefined for a name. */
function parseDomain(domain: string): string | Prefix | undefined {
  const last = domain.charCodeAt(domain.length - 1);
  // An address ends with a digit or a bracket (a bare IPv6 one with a hexadecimal digit, but istiod brackets those).
  const looksLike = domain.startsWith("[") || (last >= 48 && last <= 57);
  if (!looksLike) return undefined;
  const bare = domain.replace(/(?<=\]|^[\d.]+):\d+$/, "");
  const address = canonicalAddress(bare);
  if (address !== undefined) return address;
  return bare.includes("/") ? parsePrefix(bare) : undefined;
}

type Decision = Pick<VirtualHostRecord, "destination" | "hashesSource" | "notes">;

/**
 * The route of a virtual host at connect time: the first one that matches every request, else the service's own
 * cluster. Settings that are lost become notes.
 */
function decide(
  resource: string,
  host: envoy.VirtualHost.$Properties,
  hostname: string,
  port: number,
): Decision {
  const notes: Note[] = [];
  const own: Destination = { kind: "cluster", cluster: ownCluster(hostname, port) };
  if (host.requireTls) notes.push(note("layer7", "redirect to TLS"));
  const routes = host.routes ?? [];
  // Checks the weights of all routes, also of those that are not used.
  for (const route of routes) destinationOf(resource, route.route);
  const at = routes.findIndex((route) => matchesEverything(route.match));
  const catchAll = routes[at];
  const dependent = at < 0 ? routes.length : at;
  const count = `${dependent} ${dependent === 1 ? "route needs" : "routes need"} the request`;
  if (catchAll === undefined) {
    const text =
      dependent === 0 ? "no route: its own cluster takes all" : `${count}: its own cluster takes all`;
    notes.push(note("layer7", text));
    return { destination: own, hashesSource: false, notes: sortedNotes(notes) };
  }
  if (dependent > 0) notes.push(note("layer7", `${count}: the route for all requests takes them`));
  const action = catchAll.route;
  const destination = action ? destinationOf(resource, action) : undefined;
  if (!action || destination === undefined) {
    notes.push(note("layer7", `${actionName(catchAll)}: its own cluster takes all`));
    return { destination: own, hashesSource: false, notes: sortedNotes(notes) };
  }
  notes.push(...actionNotes(host, catchAll, action));
  const hashesSource = (action.hashPolicy ?? []).some((policy) => policy.connectionProperties?.sourceIp);
  return { destination, hashesSource, notes: notes.length === 0 ? NO_NOTES : sortedNotes(notes) };
}

function actionName(route: envoy.Route.$Properties): string {
  if (route.redirect) return "redirect";
  if (route.directResponse) return `direct response ${route.directResponse.status ?? 0}`;
  if (route.route) return "the request names its cluster";
  return "no forwarding";
}

function matchesEverything(match: envoy.RouteMatch.$Properties | null | undefined): boolean {
  if (!match) return false;
  const anyPath =
    match.prefix === "/" ||
    match.prefix === "" ||
    match.safeRegex?.regex === ".*" ||
    match.safeRegex?.regex === "/.*";
  if (!anyPath) return false;
  if (match.grpc || match.runtimeFraction || match.tlsContext) return false;
  const conditions = [
    match.headers,
    match.queryParameters,
    match.dynamicMetadata,
    match.filterState,
    match.cookies,
  ];
  return conditions.every((list) => (list?.length ?? 0) === 0);
}

/** Gives undefined when the cluster depends on the request. Throws MalformedResource for weights that can't be. */
function destinationOf(
  resource: string,
  action: envoy.RouteAction.$Properties | null | undefined,
): Destination | undefined {
  if (!action) return undefined;
  const weighted = action.weightedClusters?.clusters;
  if (weighted !== undefined && weighted !== null && weighted.length > 0) {
    return sharesOf(
      resource,
      weighted.map(({ name, weight }) => ({ cluster: name ?? "", weight: weight?.value ?? 0 })),
    );
  }
  if (typeof action.cluster === "string" && action.cluster !== "") {
    return { kind: "cluster", cluster: action.cluster };
  }
  return undefined;
}

/**
 * A destination of weighted clusters, those of weight 0 left out. Throws MalformedResource when the weights are
 * all 0 or their sum overflows. Gives undefined when a share's cluster depends on the request.
 */
export function sharesOf(
  resource: string,
  weighted: { cluster: string; weight: number }[],
): Destination | undefined {
  let sum = 0;
  for (const { weight } of weighted) sum += weight;
  if (sum === 0) throw new MalformedResource(shortName(resource), "all weights of a route are 0");
  if (sum > WEIGHT_LIMIT) {
    throw new MalformedResource(
      shortName(resource),
      `the weights of a route sum up to ${sum}, more than ${WEIGHT_LIMIT}`,
    );
  }
  const shares = weighted.filter(({ weight }) => weight > 0);
  if (shares.some(({ cluster }) => cluster === "")) return undefined;
  const [first] = shares;
  if (first !== undefined && shares.length === 1) return { kind: "cluster", cluster: first.cluster };
  return { kind: "shares", shares };
}

/** Notes for actions of the route other than forwarding. */
function actionNotes(
  host: envoy.VirtualHost.$Properties,
  route: envoy.Route.$Properties,
  action: envoy.RouteAction.$Properties,
): Note[] {
  const notes: Note[] = [];
  const layer7 = (text: string) => notes.push(note("layer7", text));
  const filters = { ...host.typedPerFilterConfig, ...route.typedPerFilterConfig };
  for (const [name, config] of Object.entries(filters)) {
    if (name.endsWith("fault")) {
      const fault = decodeAny(envoy.HttpFault, config);
      if (fault.delay || fault.abort) layer7("fault injection");
    } else if (name.endsWith("cors")) layer7("CORS");
    else layer7(`filter ${name}`);
  }
  const mirrors = (host.requestMirrorPolicies?.length ?? 0) + (action.requestMirrorPolicies?.length ?? 0);
  if (mirrors > 0) layer7("mirroring");
  if (action.prefixRewrite || action.regexRewrite) layer7("path rewrite");
  if (action.hostRewriteLiteral || action.autoHostRewrite?.value || action.hostRewriteHeader) {
    layer7("host rewrite");
  }
  const headers = [
    route.requestHeadersToAdd,
    route.requestHeadersToRemove,
    route.responseHeadersToAdd,
    route.responseHeadersToRemove,
  ];
  if (headers.some((list) => (list?.length ?? 0) > 0)) layer7("header changes");
  const timeout = seconds(action.timeout);
  if (timeout > 0) notes.push(note("not-enforced", `timeout ${timeout} s`));
  const retry = action.retryPolicy ?? host.retryPolicy;
  if (retry && !(retry.retryOn === DEFAULT_RETRY_ON && (retry.numRetries?.value ?? 1) === 2)) {
    notes.push(note("not-enforced", `retries ${retry.numRetries?.value ?? 1}`));
  }
  const idle = seconds(action.idleTimeout);
  if (idle > 0) notes.push(note("not-enforced", `idle timeout ${idle} s`));
  return notes;
}
