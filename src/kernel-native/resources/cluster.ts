/** CDS: one cluster, flattened: how its endpoints are found and chosen, and which settings are not enforced. */
import { type Balance, type Ejection, NO_EJECTION, type Note } from "../../mesh/model.ts";
import {
  balanceOf,
  ejectionOf,
  limit,
  PANIC_THRESHOLD,
  panicThreshold,
  tlsDemand,
  unenforced,
} from "./cluster-policy.ts";
import { type Discovery, discover, ORIGINAL_DST, STATIC } from "./discovery.ts";
import type { envoy } from "./envoy.gen.js";
import { NO_NOTES, type Notes, note, sortedNotes } from "./note.ts";
import { BLACK_HOLE, PASSTHROUGH, serviceOfCluster } from "./service.ts";
import { checksHost, type Demands, demandsOf } from "./transport-sockets.ts";
import { checkEnum, checkName } from "./wire.ts";

/** The policy that many clusters share; equal policies are one object. */
export interface ClusterPolicy {
  balance: Balance;
  localityWeighted: boolean;
  panicThreshold: number;
  maxConnections: number;
  ejection: Ejection;
  /** Envoy would use mutual TLS to peers marked tlsMode istio. */
  autoTls: boolean;
  notes: Notes;
}

export interface ClusterRecord {
  name: string;
  /** Name of its service, `host:port`. */
  service: string;
  discovery: Discovery;
  policy: ClusterPolicy;
  /** What the tunnel has to speak to its endpoints. Absent without the tunnel. */
  demands?: Demands;
}

const LB_POLICY_MAX = 7;
const DNS_LOOKUP_FAMILY_MAX = 4;

/** Whether a cluster concerns outgoing connections. Inbound clusters and those internal to Envoy do not. */
export function isOutgoing(name: string): boolean {
  if (name.startsWith("inbound|") || name.startsWith("inbound-vip|")) return false;
  return name !== "InboundPassthroughCluster" && name !== "connect_originate";
}

/**
 * Flattens a decoded cluster; undefined for one that concerns no outgoing connection. With `tunnel` nothing is refused
 * here for the TLS that it demands. Throws MalformedResource.
 */
export function flattenCluster(
  resource: string,
  cluster: envoy.Cluster,
  allowPlaintext: boolean,
  tunnel = false,
): ClusterRecord | undefined {
  checkName(resource, cluster.name);
  checkEnum(resource, "the cluster's type", cluster.type ?? STATIC, ORIGINAL_DST);
  checkEnum(resource, "lb_policy", cluster.lbPolicy, LB_POLICY_MAX);
  checkEnum(resource, "dns_lookup_family", cluster.dnsLookupFamily, DNS_LOOKUP_FAMILY_MAX);
  const name = cluster.name;
  if (!isOutgoing(name)) return undefined;
  const notes: Note[] = [];
  let discovery = discover(resource, cluster, allowPlaintext, tunnel);
  const tls = tlsDemand(cluster);
  const isOriginal = discovery.kind === "passthrough" || discovery.kind === "port-override";
  if (typeof tls === "string" && (!tunnel || isOriginal)) {
    if (discovery.kind === "refuse") {
      // Already refused, for a more specific reason.
    } else if (allowPlaintext)
      notes.push(note("plaintext", `${tls} is demanded, plaintext is sent (--allow-plaintext)`));
    else {
      const why = tunnel
        ? "to whatever address an app asks for"
        : "which kmesh speaks through its tunnel alone";
      notes.push(note("refused", `${tls} is demanded, ${why}: connections are refused`));
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
  if (isOriginal && cluster.outlierDetection) {
    notes.push(note("not-enforced", "outlier detection: it has no endpoints to choose from"));
  }
  if (discovery.kind === "passthrough" && maxConnections !== undefined && maxConnections > 0) {
    const text = `circuit breaker max_connections ${maxConnections}: connections that keep their address are not counted`;
    notes.push(note("not-enforced", text));
  }
  const balance = balanceOf(resource, cluster, notes);
  // istiod's PassthroughCluster and BlackHoleCluster belong to no service.
  if (name !== PASSTHROUGH && name !== BLACK_HOLE) unenforced(cluster, notes);
  const { name: service, host } = serviceOfCluster(name);
  return {
    name,
    service,
    discovery,
    ...(tunnel
      ? {
          demands: demandsOf(cluster.transportSocketMatches, cluster.transportSocket, {
            host,
            isChecked: checksHost(cluster.typedExtensionProtocolOptions),
          }),
        }
      : {}),
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

/** The record of a cluster whose only version is malformed; undefined when it concerns no outgoing connection. */
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
