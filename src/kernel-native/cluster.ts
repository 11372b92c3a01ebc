/** CDS: one cluster, flattened to how its endpoints are found and chosen, and what of it can't be honoured. */
import protobuf, { type Reader } from "protobufjs/minimal.js";
import { MalformedResource } from "../istiod/stream/sink.ts";
import { canonicalAddress } from "../mesh/address.ts";
import { type Balance, type Ejection, NO_EJECTION, type Note, type Reason } from "../mesh/model.ts";
import {
  arrange,
  compareLocalities,
  type EndpointsRecord,
  emptyAssignment,
  OVERPROVISIONING,
  type ReadAssignment,
} from "./endpoint.ts";
import { envoy } from "./envoy.gen.js";
import { NO_NOTES, type Notes, note, sortedNotes } from "./note.ts";
import { BLACK_HOLE, PASSTHROUGH, serviceOfCluster } from "./service.ts";
import {
  checkEnum,
  checkName,
  decode,
  decodeAny,
  guarded,
  messageName,
  openMessage,
  seconds,
  shortName,
} from "./wire.ts";

/** A name (or literal address) of a DNS cluster and what its addresses get. */
export interface DnsTarget {
  /** A host name, or canonical text of an address. */
  host: string;
  literal: boolean;
  port: number;
  weight: number;
  healthy: boolean;
  region: string;
  zone: string;
  subzone: string;
  priority: number;
  localityWeight: number;
}

/** 0 AUTO, 1 V4_ONLY, 2 V6_ONLY, 3 V4_PREFERRED, 4 ALL. */
export type DnsFamily = 0 | 1 | 2 | 3 | 4;

export type Discovery =
  | { kind: "eds"; endpointsName: string }
  | { kind: "static"; endpoints: EndpointsRecord }
  | {
      kind: "dns";
      /** LOGICAL_DNS: one address at a time. */
      logical: boolean;
      targets: readonly DnsTarget[];
      family: DnsFamily;
      /** Seconds between look-ups; with `respectTtl` the answer's TTL counts instead. */
      refresh: number;
      respectTtl: boolean;
      overprovisioning: number;
      notes: Notes;
    }
  /** Goes to the address that the app asked for. */
  | { kind: "passthrough" }
  /** Goes to the address that the app asked for, at this port. */
  | { kind: "port-override"; port: number }
  /** Malformed from the start: what an earlier agent left in the kernel stays. */
  | { kind: "unknown" }
  /** Every connection is refused. `why` is the remark beside the service, unless another one says it. */
  | { kind: "refuse"; reason: Reason; why?: string };

/** What many clusters have in common; equal ones are one object. */
export interface ClusterPolicy {
  balance: Balance;
  localityWeighted: boolean;
  panicThreshold: number;
  maxConnections: number;
  ejection: Ejection;
  /** Peers marked tlsMode istio would be spoken to in mutual TLS. */
  autoTls: boolean;
  notes: Notes;
}

export interface ClusterRecord {
  name: string;
  /** Name of its service, `host:port`. */
  service: string;
  discovery: Discovery;
  policy: ClusterPolicy;
}

const MAX_UINT32 = 0xffff_ffff;
/** Envoy's default for healthy_panic_threshold, in percent. */
const PANIC_THRESHOLD = 50;
/** istiod's default for connect_timeout, in seconds. */
const CONNECT_TIMEOUT = 10;
const STATIC = 0;
const STRICT_DNS = 1;
const LOGICAL_DNS = 2;
const EDS = 3;
const ORIGINAL_DST = 4;
const LB_POLICY_MAX = 7;
const DNS_LOOKUP_FAMILY_MAX = 4;
/** Seconds; Envoy's default for dns_refresh_rate. */
const DNS_REFRESH = 5;

const TO_ORIGINAL: Discovery = { kind: "passthrough" };

/** What is the same for all clusters whose bytes differ in nothing but their name. */
interface Template {
  /** The bytes that have to be the same, one part behind the other. */
  bytes: Buffer;
  policy: ClusterPolicy;
  /** undefined = its endpoints come by EDS. */
  discovery: Discovery | undefined;
}

const MOST_TEMPLATES = 1_000;

/**
 * Flattens clusters. istiod sends ten thousand that differ only in names: those are not decoded again, what was made
 * of the first one is taken for all.
 */
export class ClusterReader {
  readonly #allowPlaintext: boolean;
  /** By length of the whole cluster: a longer name makes other lengths inside, too. */
  readonly #templates = new Map<number, Template[]>();
  #count = 0;

  constructor(options: { allowPlaintext: boolean }) {
    this.#allowPlaintext = options.allowPlaintext;
  }

  /**
   * Flattens one cluster. Gives undefined for those that concern no outgoing connection (inbound ones, and the
   * plumbing inside Envoy). Throws MalformedResource.
   */
  read(resource: string, bytes: Uint8Array): ClusterRecord | undefined {
    const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const shape = guarded(resource, () => readShape(text));
    const known = this.#templates.get(text.length) ?? [];
    const template = known.find((one) => isOf(one, text, shape));
    if (template !== undefined) {
      checkName(resource, shape.name);
      if (!isOutgoing(resource)) return undefined;
      return {
        name: resource,
        service: serviceOfCluster(resource).name,
        discovery: template.discovery ?? edsDiscovery(resource, shape.serviceName),
        policy: template.policy,
      };
    }
    const cluster = decode(envoy.Cluster, resource, text);
    const record = guarded(resource, () => flattenCluster(resource, cluster, this.#allowPlaintext));
    if (record !== undefined && cluster.type === EDS && !cluster.clusterType) {
      if (this.#count++ >= MOST_TEMPLATES) {
        this.#templates.clear();
        this.#count = 1;
      }
      const { policy, discovery } = record;
      const fresh = {
        bytes: Buffer.concat(partsOf(text, shape)),
        policy,
        discovery: discovery.kind === "eds" ? undefined : discovery,
      };
      this.#templates.set(text.length, [...(this.#templates.get(text.length) ?? []), fresh]);
    }
    return record;
  }
}

/** A cluster's names, and where all else lies: clusters whose parts are the same differ only in names. */
interface Shape {
  name: string;
  serviceName: string;
  /** Start and end of each part, in order. */
  parts: number[];
}

function isOf({ bytes }: Template, text: Buffer, { parts }: Shape): boolean {
  let at = 0;
  for (let i = 0; i < parts.length; i += 2) {
    const start = parts[i] ?? 0;
    const end = parts[i + 1] ?? 0;
    const next = at + end - start;
    if (next > bytes.length || text.compare(bytes, at, next, start, end) !== 0) return false;
    at = next;
  }
  return at === bytes.length;
}

function partsOf(text: Buffer, { parts }: Shape): Buffer[] {
  const result: Buffer[] = [];
  for (let i = 0; i < parts.length; i += 2) result.push(text.subarray(parts[i], parts[i + 1]));
  return result;
}

// Tags (field number * 8 + wire type 2) as in proto/envoy_cluster.proto.
const NAME = 10;
const EDS_CONFIG = 26;
const METADATA = 202;
const SOCKET_MATCHES = 346;

/**
 * Walks over a cluster without decoding it. No part are its name, its EDS name, its metadata (which no one reads) and
 * the typed configuration of per-endpoint transport sockets (server name and certificates; their message's type, which
 * decides, is).
 */
function readShape(text: Buffer): Shape {
  const reader = protobuf.Reader.create(text);
  const shape: Shape = { name: "", serviceName: "", parts: [] };
  /** Where the next part starts. */
  let from = 0;
  const leaveOut = (start: number, end: number) => {
    if (start > from) shape.parts.push(from, start);
    from = end;
  };
  while (reader.pos < reader.len) {
    const start = reader.pos;
    const tag = reader.uint32();
    if (tag === NAME) {
      shape.name = reader.string();
      leaveOut(start, reader.pos);
    } else if (tag === EDS_CONFIG) {
      const end = openMessage(reader);
      while (reader.pos < end) {
        const part = reader.uint32();
        if (part === 18) shape.serviceName = reader.string();
        else reader.skipType(part & 7);
      }
      leaveOut(start, end);
    } else if (tag === METADATA) {
      reader.skipType(2);
      leaveOut(start, reader.pos);
    } else if (tag === SOCKET_MATCHES) {
      // TransportSocketMatch.transport_socket(3).typed_config(3).value(2)
      const end = openMessage(reader);
      skipTo(reader, end, 26, () => {
        const socketEnd = openMessage(reader);
        skipTo(reader, socketEnd, 26, () => {
          const anyEnd = openMessage(reader);
          skipTo(reader, anyEnd, 18, () => {
            const value = reader.pos;
            reader.skipType(2);
            leaveOut(value, reader.pos);
          });
        });
      });
    } else reader.skipType(tag & 7);
  }
  leaveOut(reader.len, reader.len);
  return shape;
}

/** Runs `found` behind each tag `wanted` before `end`. */
function skipTo(reader: Reader, end: number, wanted: number, found: () => void): void {
  while (reader.pos < end) {
    const tag = reader.uint32();
    if (tag === wanted) found();
    else reader.skipType(tag & 7);
  }
}

function isOutgoing(name: string): boolean {
  if (name.startsWith("inbound|") || name.startsWith("inbound-vip|")) return false;
  return name !== "InboundPassthroughCluster" && name !== "connect_originate";
}

function edsDiscovery(name: string, given: string): Discovery {
  // The cluster's own string, so that ten thousand names are not held twice.
  return { kind: "eds", endpointsName: given === "" || given === name ? name : given };
}

function flattenCluster(
  resource: string,
  cluster: envoy.Cluster,
  allowPlaintext: boolean,
): ClusterRecord | undefined {
  checkName(resource, cluster.name);
  checkEnum(resource, "the cluster's type", cluster.type ?? STATIC, ORIGINAL_DST);
  checkEnum(resource, "lb_policy", cluster.lbPolicy, LB_POLICY_MAX);
  checkEnum(resource, "dns_lookup_family", cluster.dnsLookupFamily, DNS_LOOKUP_FAMILY_MAX);
  const name = cluster.name;
  if (!isOutgoing(name)) return undefined;
  const notes: Note[] = [];
  let discovery = discover(resource, cluster, allowPlaintext);
  const tls = tlsDemand(cluster);
  if (typeof tls === "string") {
    if (discovery.kind === "refuse") {
      // Refused already, for the better reason.
    } else if (allowPlaintext)
      notes.push(note("plaintext", `${tls} is demanded, plaintext is sent (--allow-plaintext)`));
    else {
      notes.push(
        note("refused", `${tls} is demanded, which kmesh does not speak yet: connections are refused`),
      );
      discovery = { kind: "refuse", reason: "tls-required" };
    }
  }
  if (discovery.kind === "refuse" && discovery.why !== undefined) notes.push(note("refused", discovery.why));
  const maxConnections = limit(cluster, notes);
  if (maxConnections === undefined && discovery.kind !== "refuse") {
    notes.push(note("refused", "max_connections is 0"));
    discovery = { kind: "refuse", reason: "max-connections" };
  }
  const ejection = ejectionOf(cluster);
  const isOriginal = discovery.kind === "passthrough" || discovery.kind === "port-override";
  if (isOriginal && cluster.outlierDetection) {
    notes.push(note("not-enforced", "outlier detection: it has no endpoints to choose from"));
  }
  if (discovery.kind === "passthrough" && maxConnections !== undefined && maxConnections > 0) {
    const text = `circuit breaker max_connections ${maxConnections}: connections that keep their address are not counted`;
    notes.push(note("not-enforced", text));
  }
  const balance = balanceOf(resource, cluster, notes);
  // istiod's own clusters out of the mesh say nothing of a service.
  if (name !== PASSTHROUGH && name !== BLACK_HOLE) unenforced(cluster, notes);
  return {
    name,
    service: serviceOfCluster(name).name,
    discovery,
    policy: sharedPolicy({
      balance,
      localityWeighted: Boolean(cluster.commonLbConfig?.localityWeightedLbConfig),
      panicThreshold: panicThreshold(cluster),
      maxConnections: maxConnections ?? 0,
      ejection,
      autoTls: tls === true,
      notes: notes.length === 0 ? NO_NOTES : sortedNotes(notes),
    }),
  };
}

/** What stands for a cluster whose only form is malformed; undefined for those that concern no outgoing connection. */
export function unknownCluster(name: string): ClusterRecord | undefined {
  if (!isOutgoing(name)) return undefined;
  return {
    name,
    service: serviceOfCluster(name).name,
    discovery: { kind: "unknown" },
    policy: sharedPolicy({
      balance: { policy: "round-robin" },
      localityWeighted: false,
      panicThreshold: PANIC_THRESHOLD,
      maxConnections: 0,
      ejection: NO_EJECTION,
      autoTls: false,
      notes: [note("conflict", "istiod's cluster is malformed: what was known of it before stays")],
    }),
  };
}

const policies = new Map<string, ClusterPolicy>();

function sharedPolicy(policy: ClusterPolicy): ClusterPolicy {
  const key = JSON.stringify(policy);
  const known = policies.get(key);
  if (known !== undefined) return known;
  if (policies.size > 10_000) policies.clear();
  policies.set(key, policy);
  return policy;
}

function discover(resource: string, cluster: envoy.Cluster, allowPlaintext: boolean): Discovery {
  const name = cluster.name;
  if (name === BLACK_HOLE) return { kind: "refuse", reason: "policy" };
  if (cluster.clusterType) return { kind: "refuse", reason: "undecidable", why: extensionRefusal(cluster) };
  switch (cluster.type ?? STATIC) {
    case EDS:
      return edsDiscovery(name, cluster.edsClusterConfig?.serviceName ?? "");
    case ORIGINAL_DST:
      return discoverOriginal(resource, cluster.originalDstLbConfig);
    case STRICT_DNS:
      return discoverByName(resource, cluster, false);
    case LOGICAL_DNS:
      return discoverByName(resource, cluster, true);
    default:
      return {
        kind: "static",
        endpoints: arrange(readInline(resource, cluster.loadAssignment), allowPlaintext),
      };
  }
}

/** Why a cluster of an extension's type is refused. */
function extensionRefusal({ clusterType }: envoy.Cluster): string {
  const type = messageName(clusterType?.typedConfig) || clusterType?.name || "";
  if (clusterType?.name === "envoy.clusters.dynamic_forward_proxy" || type === "ClusterConfig") {
    return "its endpoint is named by each request (dynamic DNS): it can't be chosen at connect time";
  }
  return `its cluster type ${shortName(type)} is not known to kmesh: connections are refused`;
}

/** ORIGINAL_DST: the address that the app asked for, at its port or at another one. */
function discoverOriginal(
  resource: string,
  config: envoy.OriginalDstLbConfig.$Properties | null | undefined,
): Discovery {
  if (config?.useHttpHeader) {
    const why = "its endpoint is named by a header of each request: it can't be chosen at connect time";
    return { kind: "refuse", reason: "undecidable", why };
  }
  if (!config?.upstreamPortOverride) return TO_ORIGINAL;
  const port = config.upstreamPortOverride.value ?? 0;
  if (port === 0 || port > 65535)
    throw new MalformedResource(resource, `upstream_port_override has the port ${port}`);
  return { kind: "port-override", port };
}

/** The assignment inside a cluster, in the form in which one from EDS is read. */
function readInline(
  resource: string,
  assignment: envoy.ClusterLoadAssignment.$Properties | null | undefined,
): ReadAssignment {
  const read = emptyAssignment(resource);
  read.overprovisioning = assignment?.policy?.overprovisioningFactor?.value ?? OVERPROVISIONING;
  read.drops = (assignment?.policy?.dropOverloads?.length ?? 0) > 0;
  for (const target of inlineTargets(resource, assignment, read)) {
    if (!target.literal) {
      throw new MalformedResource(
        resource,
        `an endpoint has the address ${JSON.stringify(target.host)}, which is no IP`,
      );
    }
    const { region, zone, subzone, priority } = target;
    const from = read.buffer.length;
    read.buffer.push(target.host, target.port, target.weight, target.healthy);
    const weight = target.localityWeight;
    read.localities.push({ region, zone, subzone, priority, weight, from, to: read.buffer.length });
    if (target.tls) read.prefersTls = true;
  }
  return read;
}

function inlineTargets(
  resource: string,
  assignment: envoy.ClusterLoadAssignment.$Properties | null | undefined,
  read: { unreachable: number },
): (DnsTarget & { tls: boolean })[] {
  const targets: (DnsTarget & { tls: boolean })[] = [];
  for (const locality of assignment?.endpoints ?? []) {
    for (const endpoint of locality.lbEndpoints ?? []) {
      const socket = endpoint.endpoint?.address?.socketAddress;
      if (!socket) {
        read.unreachable++;
        continue;
      }
      checkEnum(resource, "health_status", endpoint.healthStatus ?? 0, 5);
      const given = socket.address ?? "";
      const port = socket.portValue ?? 0;
      const literal = canonicalAddress(given);
      if (given === "") throw new MalformedResource(resource, "an endpoint has no address");
      if (port === 0 || port > 65535)
        throw new MalformedResource(resource, `endpoint ${shortName(given)} has the port ${port}`);
      const match = endpoint.metadata?.filterMetadata?.["envoy.transport_socket_match"];
      targets.push({
        host: literal ?? given.toLowerCase().replace(/\.$/, ""),
        literal: literal !== undefined,
        port,
        weight: endpoint.loadBalancingWeight?.value || 1,
        healthy: [0, 1, 5].includes(endpoint.healthStatus ?? 0),
        region: locality.locality?.region ?? "",
        zone: locality.locality?.zone ?? "",
        subzone: locality.locality?.subZone ?? "",
        priority: locality.priority ?? 0,
        localityWeight: locality.loadBalancingWeight?.value ?? 0,
        tls: match?.fields?.tlsMode?.stringValue === "istio",
      });
    }
  }
  return targets;
}

function discoverByName(resource: string, cluster: envoy.Cluster, logical: boolean): Discovery {
  const read = { unreachable: 0 };
  const targets = inlineTargets(resource, cluster.loadAssignment, read)
    .map(({ tls: _, ...target }) => target)
    .sort(
      (a, b) =>
        compareLocalities(a, b) ||
        (a.host < b.host ? -1 : a.host > b.host ? 1 : 0) ||
        a.port - b.port ||
        b.weight - a.weight,
    );
  const policy = cluster.loadAssignment?.policy;
  const notes: Note[] = [];
  if (read.unreachable > 0)
    notes.push(
      note("not-enforced", "endpoints without an IP address (pipes, listeners inside Envoy) are left out"),
    );
  if ((policy?.dropOverloads?.length ?? 0) > 0) notes.push(note("not-enforced", "drop_overloads"));
  return {
    kind: "dns",
    logical,
    targets,
    family: cluster.dnsLookupFamily as DnsFamily,
    refresh: seconds(cluster.dnsRefreshRate) || DNS_REFRESH,
    respectTtl: cluster.respectDnsTtl,
    overprovisioning: policy?.overprovisioningFactor?.value ?? OVERPROVISIONING,
    notes: sortedNotes(notes),
  };
}

/**
 * What the transport sockets ask of a plain peer: a text that names the demand, true when only peers marked tlsMode
 * istio would get mutual TLS (auto-mTLS), false when plaintext is right for all.
 */
function tlsDemand(cluster: envoy.Cluster): string | boolean {
  const matches = cluster.transportSocketMatches ?? [];
  if (matches.length === 0) return demandOf(cluster.transportSocket) ?? false;
  let auto = false;
  for (const { name, match, transportSocket } of matches) {
    const fields = Object.entries(match?.fields ?? {});
    // Peers that only speak HBONE come without a plain address: not this entry's.
    if (fields.some(([key]) => key === "tunnel")) continue;
    const demand = demandOf(transportSocket, name ?? "");
    if (fields.length === 0) return demand ?? auto;
    if (demand !== undefined) auto = true;
  }
  // No entry takes a plain peer: the cluster's own socket does, plaintext when there is none.
  return demandOf(cluster.transportSocket) ?? auto;
}

/** What a transport socket demands, in words; undefined when it is plaintext. */
function demandOf(
  socket: envoy.TransportSocket.$Properties | null | undefined,
  entry = "",
): string | undefined {
  if (!socket) return undefined;
  const message = messageName(socket.typedConfig);
  if (message === "RawBuffer" || socket.name === "envoy.transport_sockets.raw_buffer") return undefined;
  if (message === "ProxyProtocolUpstreamTransport") return "the PROXY protocol";
  if (message === "UpstreamTlsContext") {
    return entry.startsWith("tlsMode-istio") ? "mutual TLS of the mesh (ISTIO_MUTUAL)" : "TLS";
  }
  return `transport socket ${shortName(socket.name || message)}`;
}

/** max_connections; 0 = no limit, undefined = none are allowed. Other limits become notes. */
function limit(cluster: envoy.Cluster, notes: Note[]): number | undefined {
  const thresholds = (cluster.circuitBreakers?.thresholds ?? []).find(
    ({ priority }) => (priority ?? 0) === 0,
  );
  if (!thresholds) return 0;
  const others = {
    max_pending_requests: thresholds.maxPendingRequests,
    max_requests: thresholds.maxRequests,
    max_retries: thresholds.maxRetries,
  };
  for (const [field, given] of Object.entries(others)) {
    const value = given?.value ?? MAX_UINT32;
    if (given && value !== MAX_UINT32) notes.push(note("not-enforced", `circuit breaker ${field} ${value}`));
  }
  if (!thresholds.maxConnections) return 0;
  const value = thresholds.maxConnections.value ?? 0;
  if (value === 0) return undefined;
  return value === MAX_UINT32 ? 0 : value;
}

function panicThreshold(cluster: envoy.Cluster): number {
  const threshold = cluster.commonLbConfig?.healthyPanicThreshold;
  if (!threshold) return PANIC_THRESHOLD;
  const value = threshold.value ?? 0;
  return Number.isFinite(value) ? Math.min(100, Math.max(0, Math.round(value))) : 0;
}

/** Envoy's defaults: failures in a row, percent, milliseconds. */
const OUTLIER = { failures: 5, percent: 10, base: 30_000, longest: 300_000 };

/**
 * Which failures in a row eject. Only connects are seen here, and to Envoy one that failed is a local origin error: with
 * split_external_local_origin_errors those have a counter of their own, without it they count as a 503 or 504 would,
 * as a 5xx and as a gateway failure, whichever is reached first.
 */
function ejectionOf({ outlierDetection: outlier }: envoy.Cluster): Ejection {
  if (!outlier) return NO_EJECTION;
  const enforced = outlier.splitExternalLocalOriginErrors
    ? [failuresOf(outlier.consecutiveLocalOriginFailure, outlier.enforcingConsecutiveLocalOriginFailure, 100)]
    : [
        failuresOf(outlier.consecutive_5xx, outlier.enforcingConsecutive_5xx, 100),
        failuresOf(outlier.consecutiveGatewayFailure, outlier.enforcingConsecutiveGatewayFailure, 0),
      ];
  // Of two kinds of errors that a failed connect counts as, the one that ejects first.
  const [first] = enforced
    .filter(({ count }) => count > 0)
    .sort((a, b) => a.count - b.count || b.enforcing - a.enforcing);
  const percent = Math.min(100, wrapped(outlier.maxEjectionPercent, OUTLIER.percent));
  if (!first || percent === 0) return NO_EJECTION;
  const base = outlier.baseEjectionTime ? seconds(outlier.baseEjectionTime) * 1_000 : OUTLIER.base;
  const longest = outlier.maxEjectionTime
    ? seconds(outlier.maxEjectionTime) * 1_000
    : Math.max(base, OUTLIER.longest);
  return { after: first.count, base, longest, percent, enforcing: Math.min(100, first.enforcing) };
}

type Wrapped = { value?: number | null } | null | undefined;

/** A wrapper that is there without a value means 0. */
function wrapped(given: Wrapped, otherwise: number): number {
  return given ? (given.value ?? 0) : otherwise;
}

/** Failures in a row that eject, 0 = they don't, and out of a hundred such rows how many do. */
function failuresOf(
  given: Wrapped,
  enforced: Wrapped,
  enforcedByDefault: number,
): { count: number; enforcing: number } {
  const enforcing = wrapped(enforced, enforcedByDefault);
  return { count: enforcing > 0 ? wrapped(given, OUTLIER.failures) : 0, enforcing };
}

function lostDetection(outlier: envoy.OutlierDetection.$Properties, lost: (text: string) => void): void {
  const errors =
    failuresOf(outlier.consecutive_5xx, outlier.enforcingConsecutive_5xx, 100).count > 0 ||
    failuresOf(outlier.consecutiveGatewayFailure, outlier.enforcingConsecutiveGatewayFailure, 0).count > 0;
  if (errors) lost("outlier detection by HTTP errors: connects that fail count");
  if (wrapped(outlier.enforcingSuccessRate, 100) > 0) lost("outlier detection by success rate");
}

const LB_NAMES = [
  "ROUND_ROBIN",
  "LEAST_REQUEST",
  "RING_HASH",
  "RANDOM",
  undefined,
  "MAGLEV",
  "CLUSTER_PROVIDED",
];
const LB_MESSAGES: Record<string, string> = {
  RoundRobin: "ROUND_ROBIN",
  ClientSideWeightedRoundRobin: "ROUND_ROBIN",
  LeastRequest: "LEAST_REQUEST",
  RingHash: "RING_HASH",
  Random: "RANDOM",
  Maglev: "MAGLEV",
};

function balanceOf(resource: string, cluster: envoy.Cluster, notes: Note[]): Balance {
  let policy = LB_NAMES[cluster.lbPolicy];
  const extension = (cluster.loadBalancingPolicy?.policies ?? [])
    .map((entry) => messageName(entry.typedExtensionConfig?.typedConfig))
    .find((message) => message in LB_MESSAGES);
  if (cluster.loadBalancingPolicy) {
    policy = extension === undefined ? undefined : LB_MESSAGES[extension];
    if (policy === undefined) {
      notes.push(note("not-enforced", "its load balancing policy is unknown: round robin instead"));
      policy = "ROUND_ROBIN";
    } else if (extension === "ClientSideWeightedRoundRobin") {
      notes.push(note("not-enforced", "weights reported by the endpoints"));
    }
  }
  switch (policy) {
    case "ROUND_ROBIN":
    case "CLUSTER_PROVIDED":
      return { policy: "round-robin" };
    case "LEAST_REQUEST":
      return { policy: "least-request" };
    case "RANDOM":
      return { policy: "random" };
    case "RING_HASH":
      return { policy: "ring-hash", tableSize: cluster.ringHashLbConfig?.minimumRingSize?.value ?? 0 };
    case "MAGLEV":
      return { policy: "maglev", tableSize: cluster.maglevLbConfig?.tableSize?.value ?? 0 };
    default:
      throw new MalformedResource(resource, `lb_policy has the unknown value ${cluster.lbPolicy}`);
  }
}

/** Notes what is valid and without effect here. */
function unenforced(cluster: envoy.Cluster, notes: Note[]): void {
  const lost = (text: string) => notes.push(note("not-enforced", text));
  const slowStart =
    cluster.roundRobinLbConfig?.slowStartConfig ?? cluster.leastRequestLbConfig?.slowStartConfig;
  if (slowStart) lost(`slow start ${seconds(slowStart.slowStartWindow)} s`);
  if (cluster.outlierDetection && cluster.type !== ORIGINAL_DST)
    lostDetection(cluster.outlierDetection, lost);
  if (cluster.healthChecks.length > 0) lost("active health checks");
  if (cluster.lbSubsetConfig) lost("subset load balancing");
  if (cluster.commonLbConfig?.zoneAwareLbConfig) lost("zone-aware routing");
  if (cluster.upstreamConnectionOptions?.tcpKeepalive) lost("TCP keepalive");
  const timeout = seconds(cluster.connectTimeout);
  if (cluster.connectTimeout && timeout !== CONNECT_TIMEOUT) lost(`connect timeout ${timeout} s`);
  for (const config of Object.values(cluster.typedExtensionProtocolOptions)) {
    if (messageName(config) !== "HttpProtocolOptions") continue;
    const http = decodeAny(envoy.UpstreamHttpProtocolOptions, config).commonHttpProtocolOptions;
    const requests = http?.maxRequestsPerConnection?.value ?? 0;
    if (requests > 0) lost(`max requests per connection ${requests}`);
    const idle = seconds(http?.idleTimeout);
    if (idle > 0) lost(`HTTP idle timeout ${idle} s`);
    const age = seconds(http?.maxConnectionDuration);
    if (age > 0) lost(`max connection duration ${age} s`);
  }
}
