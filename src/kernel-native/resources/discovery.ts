/** CDS: service discovery of a cluster. */
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { canonicalAddress } from "../../mesh/address.ts";
import { compareLocalities } from "../../mesh/locality.ts";
import type { Note, Reason } from "../../mesh/model.ts";
import { isTunnelEntry } from "../../mesh/tunnel-address.ts";
import {
  arrange,
  type EndpointsRecord,
  emptyAssignment,
  OVERPROVISIONING,
  type ReadAssignment,
} from "./endpoint.ts";
import type { envoy } from "./envoy.gen.js";
import { type Notes, note, sortedNotes } from "./note.ts";
import { BLACK_HOLE } from "./service.ts";
import { TLS_MODE_ISTIO } from "./transport-sockets.ts";
import { checkEnum, messageName, seconds, shortName } from "./wire.ts";

/** A name or literal address of a DNS cluster, and the attributes of its endpoints. */
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
  /** The class of its metadata (transport-sockets.ts); 0 without the tunnel. */
  metadata: number;
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
      /** Seconds between lookups. With `respectTtl` the answer's TTL is used instead. */
      refresh: number;
      respectTtl: boolean;
      overprovisioning: number;
      notes: Notes;
    }
  /** Connects to the address that the app asked for. */
  | { kind: "passthrough" }
  /** Connects to the address that the app asked for, at this port. */
  | { kind: "port-override"; port: number }
  /** Malformed, without an earlier version: the tables that an earlier agent left in the kernel stay. */
  | { kind: "unknown" }
  /** Every connection is refused. `why` is the text of the note, unless another note says it. */
  | { kind: "refuse"; reason: Reason; why?: string };

/** The discovery types of a cluster, as the proto numbers them. */
export const STATIC = 0;
const STRICT_DNS = 1;
const LOGICAL_DNS = 2;
export const EDS = 3;
export const ORIGINAL_DST = 4;
/** Seconds; Envoy's default for dns_refresh_rate. */
const DNS_REFRESH = 5;

const TO_ORIGINAL: Discovery = { kind: "passthrough" };

/** `given` is the name in the cluster's EDS configuration, often its own. */
export function edsDiscovery(name: string, given: string): Discovery {
  // Uses the cluster's own string, so that equal names are not held twice.
  return { kind: "eds", endpointsName: given === "" || given === name ? name : given };
}

/** How the endpoints of a cluster are found. Throws MalformedResource. */
export function discover(
  resource: string,
  cluster: envoy.Cluster,
  allowPlaintext: boolean,
  tunnel = false,
): Discovery {
  const name = cluster.name;
  if (name === BLACK_HOLE) return { kind: "refuse", reason: "policy" };
  if (cluster.clusterType) return { kind: "refuse", reason: "undecidable", why: extensionRefusal(cluster) };
  switch (cluster.type ?? STATIC) {
    case EDS:
      return edsDiscovery(name, cluster.edsClusterConfig?.serviceName ?? "");
    case ORIGINAL_DST:
      return discoverOriginal(resource, cluster.originalDstLbConfig);
    case STRICT_DNS:
      return discoverByName(resource, cluster, false, tunnel);
    case LOGICAL_DNS:
      return discoverByName(resource, cluster, true, tunnel);
    default:
      return {
        kind: "static",
        endpoints: arrange(readInline(resource, cluster.loadAssignment, tunnel), allowPlaintext),
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

/** Reads the assignment inside a cluster into the form of an EDS one. */
function readInline(
  resource: string,
  assignment: envoy.ClusterLoadAssignment.$Properties | null | undefined,
  tunnel: boolean,
): ReadAssignment {
  const read = emptyAssignment(resource, tunnel);
  read.overprovisioning = assignment?.policy?.overprovisioningFactor?.value ?? OVERPROVISIONING;
  read.drops = (assignment?.policy?.dropOverloads?.length ?? 0) > 0;
  for (const target of inlineTargets(resource, assignment, read)) {
    if (!target.literal) {
      throw new MalformedResource(
        resource,
        `an endpoint has the address ${JSON.stringify(target.host)}, which is not an IP address`,
      );
    }
    if (isTunnelEntry(target.host, target.port)) {
      read.entries = true;
      continue;
    }
    const { region, zone, subzone, priority } = target;
    const from = read.buffer.length;
    read.buffer.push(target.host, target.port, target.weight, target.healthy, false, target.metadata);
    const weight = target.localityWeight;
    read.localities.push({ region, zone, subzone, priority, weight, from, to: read.buffer.length });
    if (target.tls) read.prefersTls = true;
  }
  return read;
}

function inlineTargets(
  resource: string,
  assignment: envoy.ClusterLoadAssignment.$Properties | null | undefined,
  read: { unreachable: number; tunnel: boolean },
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
        metadata: read.tunnel && match?.fields?.tlsMode?.stringValue === "istio" ? TLS_MODE_ISTIO : 0,
      });
    }
  }
  return targets;
}

function discoverByName(
  resource: string,
  cluster: envoy.Cluster,
  logical: boolean,
  tunnel: boolean,
): Discovery {
  const read = { unreachable: 0, tunnel };
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
