/** CDS: load balancing, circuit breaking and outlier detection of a cluster, and which settings are not enforced. */
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { type Balance, type Ejection, NO_EJECTION, type Note } from "../../mesh/model.ts";
import { ORIGINAL_DST } from "./discovery.ts";
import { envoy } from "./envoy.gen.js";
import { note } from "./note.ts";
import { decodeAny, messageName, seconds, shortName } from "./wire.ts";

const MAX_UINT32 = 0xffff_ffff;
/** Envoy's default for healthy_panic_threshold, in percent. */
export const PANIC_THRESHOLD = 50;
/** istiod's default for connect_timeout, in seconds. */
const CONNECT_TIMEOUT = 10;

/**
 * What the transport sockets demand for a peer without tlsMode: a text that names the demand; true when only peers
 * marked tlsMode istio would get mutual TLS (auto-mTLS); false when plaintext is right for all peers.
 */
export function tlsDemand(cluster: envoy.Cluster): string | boolean {
  const matches = cluster.transportSocketMatches ?? [];
  if (matches.length === 0) return demandOf(cluster.transportSocket) ?? false;
  let auto = false;
  for (const { name, match, transportSocket } of matches) {
    const fields = Object.entries(match?.fields ?? {});
    // Peers that only speak HBONE have no plain address, so this entry does not match them.
    if (fields.some(([key]) => key === "tunnel")) continue;
    const demand = demandOf(transportSocket, name ?? "");
    if (fields.length === 0) return demand ?? auto;
    if (demand !== undefined) auto = true;
  }
  // No entry matches a plain peer: the cluster's own socket applies, plaintext when there is none.
  return demandOf(cluster.transportSocket) ?? auto;
}

/** What a transport socket demands, as text; undefined when it is plaintext. */
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

/** max_connections: 0 = no limit, undefined = no connections allowed. The other limits become notes. */
export function limit(cluster: envoy.Cluster, notes: Note[]): number | undefined {
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

/** healthy_panic_threshold, percent; 0 = never. */
export function panicThreshold(cluster: envoy.Cluster): number {
  const threshold = cluster.commonLbConfig?.healthyPanicThreshold;
  if (!threshold) return PANIC_THRESHOLD;
  const value = threshold.value ?? 0;
  return Number.isFinite(value) ? Math.min(100, Math.max(0, Math.round(value))) : 0;
}

/** Envoy's defaults: consecutive failures, percent, milliseconds. */
const OUTLIER = { failures: 5, percent: 10, base: 30_000, longest: 300_000 };

/**
 * Outlier detection. kmesh sees connects only. To Envoy a failed connect is a local origin error. With
 * split_external_local_origin_errors it has its own counter. Without it, it counts as a 5xx and as a gateway failure,
 * and the counter that reaches its limit first ejects.
 */
export function ejectionOf({ outlierDetection: outlier }: envoy.Cluster): Ejection {
  if (!outlier) return NO_EJECTION;
  const enforced = outlier.splitExternalLocalOriginErrors
    ? [failuresOf(outlier.consecutiveLocalOriginFailure, outlier.enforcingConsecutiveLocalOriginFailure, 100)]
    : [
        failuresOf(outlier.consecutive_5xx, outlier.enforcingConsecutive_5xx, 100),
        failuresOf(outlier.consecutiveGatewayFailure, outlier.enforcingConsecutiveGatewayFailure, 0),
      ];
  // A failed connect counts for both: the lower limit ejects first.
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

/** A wrapper without a value means 0. */
function wrapped(given: Wrapped, otherwise: number): number {
  return given ? (given.value ?? 0) : otherwise;
}

/** `count`: consecutive failures that eject, 0 = none do. `enforcing`: percentage of such series that eject. */
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

/**
 * The load balancing policy. Policies that kmesh does not know become round robin, with a note. Throws
 * MalformedResource for an undefined lb_policy.
 */
export function balanceOf(resource: string, cluster: envoy.Cluster, notes: Note[]): Balance {
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

/** Adds notes for valid settings that kmesh does not enforce. */
export function unenforced(cluster: envoy.Cluster, notes: Note[]): void {
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
