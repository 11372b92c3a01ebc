/**
 * Services as Envoy resources, in the shapes that istiod gives a sidecar: one cluster for each port and subset, a
 * listener for each TCP address, a shared listener and route table for each HTTP port, one table of names.
 */
import { parseLocality } from "../istiod/node.ts";
import type { ResourceType } from "../istiod/stream/sink.ts";
import { envoy, istio } from "../kernel-native/resources/envoy.gen.js";
import { parsePrefix } from "../mesh/address.ts";
import { any, Bytes, type Encoded } from "./encoding.ts";
import { machineAddresses, machinePolicies } from "./machine.ts";
import type { DemoEndpoint, DemoInbound, DemoMesh, DemoService } from "./services.ts";
import { addressesOf, CLUSTER } from "./workloads.ts";

/** By type and name, the bytes of each resource. */
export type Resources = Record<ResourceType, Map<string, Encoded>>;

const UNLIMITED = 0xffff_ffff;
const ADS = { ads: {}, initialFetchTimeout: {}, resourceApiVersion: 2 };
const RAW_BUFFER = {
  name: "envoy.transport_sockets.raw_buffer",
  typedConfig: any("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", new Uint8Array(0)),
};
const INTERNAL_UPSTREAM = {
  name: "envoy.transport_sockets.internal_upstream",
  typedConfig: any(
    "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
    new Uint8Array(0),
  ),
};
/** Of the machine that asks, whatever its own is: peers that are reached by HBONE are checked for it. */
const TRUST_DOMAIN = "cluster.local";
/** Cluster.lb_policy */
const LB_POLICY = { "round-robin": 0, "least-request": 1, "ring-hash": 2, random: 3, maglev: 5 } as const;
const EDS = 3;
const ORIGINAL_DST = 4;
const CLUSTER_PROVIDED = 6;
const INBOUND = 1;
const OUTBOUND = 2;
/** The action of an RBAC filter. */
const DENY = 1;
const UNHEALTHY = 2;
/** SubjectAltNameMatcher.san_type */
const URI_SAN = 3;
const CONNECT_ORIGINATE = "connect_originate";
const socketMatch = (key: string, stringValue: string): envoy.Metadata.$Properties => ({
  filterMetadata: { "envoy.transport_socket_match": { fields: { [key]: { stringValue } } } },
});
/** Of endpoints. Those of HBONE are told apart by theirs. */
const METADATA = { istio: socketMatch("tlsMode", "istio"), hbone: socketMatch("tunnel", "http") } as const;

/** The resources of one service. Kept as long as the service object lives. */
interface ServiceParts {
  clusters: [name: string, bytes: Uint8Array][];
  endpoints: [name: string, bytes: Uint8Array][];
  listeners: [name: string, bytes: Uint8Array][];
  /** Filter chains of the port-wide listener: one for each block of addresses, or one that matches all. */
  chains: envoy.FilterChain.$Properties[];
  virtualHost?: Uint8Array;
}

const parts = new WeakMap<DemoService, ServiceParts>();

/**
 * The resources of a mesh. Unchanged resources are the same objects as in `before`. With `workloads` also those of the
 * workload API, one for each endpoint.
 */
export function resourcesOf(mesh: DemoMesh, before?: Resources, workloads = false): Resources {
  const clusters = new Bytes("cluster", before?.cluster);
  const endpoints = new Bytes("endpoints", before?.endpoints);
  const listeners = new Bytes("listener", before?.listener);
  const routes = new Bytes("route", before?.route);
  const names = new Bytes("names", before?.names);
  const catchAll = mesh.outbound === "REGISTRY_ONLY" ? "BlackHoleCluster" : "PassthroughCluster";

  const httpPorts = new Map<number, Uint8Array[]>();
  const chains = new Map<number, envoy.FilterChain.$Properties[]>();
  const hosts = new Map<string, string[]>();
  for (const service of mesh.services) {
    const part = partsOf(service);
    for (const [name, bytes] of part.clusters) clusters.set(name, bytes);
    for (const [name, bytes] of part.endpoints) endpoints.set(name, bytes);
    // The first service at an address wins, as in istiod.
    for (const [name, bytes] of part.listeners) if (!listeners.map.has(name)) listeners.set(name, bytes);
    if (part.chains.length > 0) append(chains, service.port, part.chains);
    if (part.virtualHost) append(httpPorts, service.port, [part.virtualHost]);
    append(
      hosts,
      service.host,
      service.addresses.filter((address) => !address.includes("/")),
    );
  }
  if (mesh.inbound) listeners.set("virtualInbound", inboundListener(mesh.inbound));
  for (const [name, bytes] of builtInClusters(mesh.services.some(({ mtls }) => mtls === "hbone")))
    clusters.set(name, bytes);
  for (const port of httpPorts.keys()) listeners.set(`0.0.0.0_${port}`, httpListener(port, catchAll));
  for (const [port, list] of chains) {
    if (!httpPorts.has(port)) listeners.set(`0.0.0.0_${port}`, portListener(port, list, catchAll));
  }
  listeners.set("virtualOutbound", virtualOutbound(catchAll));
  for (const [port, hosts] of httpPorts) routes.set(String(port), routeTable(port, hosts, catchAll));
  names.set("", nameTable(hosts));
  const addresses = new Bytes("address", before?.address);
  const authorizations = new Bytes("authorization", before?.authorization);
  if (workloads) {
    for (const [name, bytes] of addressesOf(mesh.services)) addresses.set(name, bytes);
    const { machine, inbound = [] } = mesh;
    for (const [name, bytes] of machine ? machineAddresses(machine, inbound) : []) addresses.set(name, bytes);
    for (const [name, bytes] of machinePolicies(inbound)) authorizations.set(name, bytes);
  }
  return {
    cluster: clusters.map,
    endpoints: endpoints.map,
    listener: listeners.map,
    route: routes.map,
    names: names.map,
    address: addresses.map,
    authorization: authorizations.map,
  };
}

/** istiod's answer for the endpoints of an unknown cluster. */
export function noEndpoints(name: string): Uint8Array {
  return envoy.ClusterLoadAssignment.encode({ clusterName: name }).finish();
}

function append<K, V>(map: Map<K, V[]>, key: K, values: readonly V[]): void {
  const list = map.get(key);
  if (list) list.push(...values);
  else map.set(key, [...values]);
}

function partsOf(service: DemoService): ServiceParts {
  const known = parts.get(service);
  if (known) return known;
  const made = makeParts(service);
  parts.set(service, made);
  return made;
}

function makeParts(service: DemoService): ServiceParts {
  const { port, protocol = "tcp", endpoints } = service;
  const subsets = ["", ...new Set(endpoints.flatMap(({ subset }) => (subset === undefined ? [] : [subset])))];
  const made: ServiceParts = { clusters: [], endpoints: [], listeners: [], chains: [] };
  for (const subset of subsets) {
    const name = clusterName(service, subset);
    const own = subset === "" ? endpoints : endpoints.filter((endpoint) => endpoint.subset === subset);
    made.clusters.push([name, cluster(service, name, subset)]);
    if (service.resolution !== "none") made.endpoints.push([name, loadAssignment(name, own, service)]);
  }
  if (protocol === "http") {
    made.virtualHost = virtualHost(service);
    return made;
  }
  const filter = tcpProxy(service);
  const singles = service.addresses.filter((address) => !address.includes("/"));
  for (const address of singles) {
    made.listeners.push([`${address}_${port}`, tcpListener(address, port, filter)]);
  }
  const blocks = service.addresses.filter((address) => address.includes("/"));
  for (const block of blocks) {
    const prefix = parsePrefix(block);
    if (!prefix) continue;
    const range = { addressPrefix: prefix.address, prefixLen: { value: prefix.length } };
    made.chains.push({ filterChainMatch: { prefixRanges: [range] }, filters: [filter] });
  }
  if (service.addresses.length === 0) made.chains.push({ filters: [filter] });
  return made;
}

/** `outbound|PORT|SUBSET|HOST` */
export function clusterName(service: Pick<DemoService, "host" | "port">, subset = ""): string {
  return `outbound|${service.port}|${subset}|${service.host}`;
}

function cluster(service: DemoService, name: string, subset: string): Uint8Array {
  if (service.resolution === "none")
    return envoy.Cluster.encode({
      ...{ name, type: ORIGINAL_DST, lbPolicy: CLUSTER_PROVIDED },
      connectTimeout: { seconds: 10 },
    }).finish();
  const { balance = "least-request", host, port } = service;
  const localities = new Set(
    service.endpoints.map(({ locality = "", priority = 0 }) => `${locality} ${priority}`),
  );
  const message: envoy.Cluster.$Properties = {
    name,
    type: EDS,
    edsClusterConfig: { edsConfig: ADS, serviceName: name },
    connectTimeout: { seconds: 10 },
    lbPolicy: LB_POLICY[balance],
    circuitBreakers: {
      thresholds: [
        {
          maxConnections: { value: service.maxConnections ?? UNLIMITED },
          maxPendingRequests: { value: UNLIMITED },
          maxRequests: { value: UNLIMITED },
          maxRetries: { value: UNLIMITED },
        },
      ],
    },
    commonLbConfig: { healthyPanicThreshold: {} },
    transportSocketMatches: [
      {
        name: "tlsMode-istio",
        match: { fields: { tlsMode: { stringValue: "istio" } } },
        transportSocket: meshTls(
          ["istio-peer-exchange", "istio"],
          (service.sans ?? []).map((exact) => ({ exact })),
          `outbound_.${port}_.${subset || "_"}.${host}`,
        ),
      },
      {
        name: "hbone",
        match: { fields: { tunnel: { stringValue: "http" } } },
        transportSocket: INTERNAL_UPSTREAM,
      },
      { name: "tlsMode-disabled", match: {}, transportSocket: RAW_BUFFER },
    ],
  };
  if (balance === "ring-hash") message.ringHashLbConfig = { minimumRingSize: { value: 1024 } };
  if (balance === "maglev") message.maglevLbConfig = {};
  // istiod gives localities priorities only together with outlier detection.
  if (localities.size > 1) message.outlierDetection = { consecutive_5xx: { value: 5 } };
  return envoy.Cluster.encode(message).finish();
}

/** TLS with the certificate and the roots of the mesh. */
function meshTls(
  alpnProtocols: string[],
  sans: readonly envoy.StringMatcher.$Properties[],
  sni = "",
): envoy.TransportSocket.$Properties {
  const context = envoy.UpstreamTlsContext.encode({
    commonTlsContext: {
      alpnProtocols,
      tlsCertificateSdsSecretConfigs: [{ name: "default" }],
      combinedValidationContext: {
        defaultValidationContext: {
          matchTypedSubjectAltNames: sans.map((matcher) => ({ sanType: URI_SAN, matcher })),
        },
        validationContextSdsSecretConfig: { name: "ROOTCA" },
      },
    },
    sni,
  }).finish();
  return {
    name: "envoy.transport_sockets.tls",
    typedConfig: any("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", context),
  };
}

function loadAssignment(name: string, endpoints: readonly DemoEndpoint[], service: DemoService): Uint8Array {
  const groups = new Map<string, DemoEndpoint[]>();
  for (const endpoint of endpoints) {
    append(groups, `${endpoint.priority ?? 0} ${endpoint.locality ?? ""}`, [endpoint]);
  }
  return envoy.ClusterLoadAssignment.encode({
    clusterName: name,
    endpoints: [...groups.values()].map((group) => localityOf(group, service)),
  }).finish();
}

function localityOf(
  endpoints: readonly DemoEndpoint[],
  service: DemoService,
): envoy.LocalityLbEndpoints.$Properties {
  const [first] = endpoints;
  const group: envoy.LocalityLbEndpoints.$Properties = {
    loadBalancingWeight: { value: endpoints.reduce((sum, { weight = 1 }) => sum + weight, 0) },
    lbEndpoints: endpoints.map((endpoint) => ({
      endpoint: { address: addressOf(endpoint.address, endpoint.port, service.mtls) },
      ...(endpoint.healthy === false && { healthStatus: UNHEALTHY }),
      metadata: metadataOf(endpoint, service),
      loadBalancingWeight: { value: endpoint.weight ?? 1 },
    })),
  };
  if (first?.priority) group.priority = first.priority;
  if (first?.locality) {
    const { region, zone, subzone } = parseLocality(first.locality);
    group.locality = { region, zone, subZone: subzone };
  } else group.locality = {};
  return group;
}

/** How an endpoint is reached, and "workload;namespace;canonical service;revision;cluster" where its workload has a name. */
function metadataOf(
  { workload, subset = "" }: DemoEndpoint,
  { host, mtls }: DemoService,
): envoy.Metadata.$Properties | null {
  const reached = mtls ? METADATA[mtls] : null;
  if (workload === undefined) return reached;
  const [canonical = host, namespace = ""] = host.split(".");
  const stringValue = [workload, namespace, canonical, subset, CLUSTER].join(";");
  return {
    filterMetadata: { ...reached?.filterMetadata, istio: { fields: { workload: { stringValue } } } },
  };
}

/** As istiod writes the address of an endpoint that is reached by HBONE: inside of the listener for that. */
function addressOf(address: string, portValue: number, mtls: DemoService["mtls"]): envoy.Address.$Properties {
  if (mtls !== "hbone") return { socketAddress: { address, portValue } };
  const host = address.includes(":") ? `[${address}]` : address;
  return {
    envoyInternalAddress: { serverListenerName: CONNECT_ORIGINATE, endpointId: `${host}:${portValue}` },
  };
}

const hashes = (service: DemoService) => service.balance === "ring-hash" || service.balance === "maglev";

/** The split's subsets with a weight, as istiod leaves out those without. */
const shares = (service: DemoService) =>
  Object.entries(service.split ?? {})
    .filter(([, weight]) => weight > 0)
    .map(([subset, weight]) => ({ name: clusterName(service, subset), weight }));

function tcpProxy(service: DemoService): envoy.Filter.$Properties {
  const clusters = shares(service);
  const message: envoy.TcpProxy.$Properties = { statPrefix: clusterName(service) };
  if (clusters.length > 1) message.weightedClusters = { clusters };
  else message.cluster = clusters[0]?.name ?? clusterName(service);
  if (hashes(service)) message.hashPolicy = [{ sourceIp: {} }];
  return tcpProxyFilter(message);
}

function tcpProxyFilter(message: envoy.TcpProxy.$Properties): envoy.Filter.$Properties {
  return {
    name: "envoy.filters.network.tcp_proxy",
    typedConfig: any(
      "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
      envoy.TcpProxy.encode(message).finish(),
    ),
  };
}

function listener(name: string, address: string, port: number, rest: envoy.Listener.$Properties): Uint8Array {
  return envoy.Listener.encode({
    name,
    address: { socketAddress: { address, portValue: port } },
    trafficDirection: OUTBOUND,
    bindToPort: { value: false },
    ...rest,
  }).finish();
}

/** virtualInbound, with the chains that istiod makes of PeerAuthentication and AuthorizationPolicy. */
function inboundListener(ports: readonly DemoInbound[]): Uint8Array {
  const filterChains = ports.flatMap(({ port, mtls = "permissive", deny = [] }) => {
    const principals = deny.map((block) => {
      const prefix = parsePrefix(block);
      return {
        directRemoteIp: {
          addressPrefix: prefix?.address ?? "",
          prefixLen: { value: prefix?.length ?? 0 },
        },
      };
    });
    const name = `ns[demo]-policy[deny-${port}]-rule[0]`;
    const rules = { action: DENY, policies: { [name]: { permissions: [{ any: true }], principals } } };
    const rbac = {
      name: "envoy.filters.network.rbac",
      typedConfig: any(
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        envoy.NetworkRbac.encode({ rules }).finish(),
      ),
    };
    const filters = [...(deny.length > 0 ? [rbac] : []), tcpProxyFilter({ cluster: `inbound|${port}||` })];
    const chain = (transportProtocol: string) => ({
      filterChainMatch: { destinationPort: { value: port }, transportProtocol },
      filters,
    });
    return [
      ...(mtls === "disable" ? [] : [chain("tls")]),
      ...(mtls === "strict" ? [] : [chain("raw_buffer")]),
    ];
  });
  return listener("virtualInbound", "0.0.0.0", 15006, { trafficDirection: INBOUND, filterChains });
}

function tcpListener(address: string, port: number, filter: envoy.Filter.$Properties): Uint8Array {
  return listener(`${address}_${port}`, address, port, { filterChains: [{ filters: [filter] }] });
}

function portListener(
  port: number,
  chains: readonly envoy.FilterChain.$Properties[],
  catchAll: string,
): Uint8Array {
  const matching = chains.filter((chain) => chain.filterChainMatch);
  const [all] = chains.filter((chain) => !chain.filterChainMatch);
  if (all) return listener(`0.0.0.0_${port}`, "0.0.0.0", port, { filterChains: [...matching, all] });
  return listener(`0.0.0.0_${port}`, "0.0.0.0", port, {
    filterChains: matching,
    defaultFilterChain: passthroughChain(catchAll),
  });
}

function httpListener(port: number, catchAll: string): Uint8Array {
  const manager = envoy.HttpConnectionManager.encode({
    statPrefix: `outbound_0.0.0.0_${port};`,
    rds: { configSource: ADS, routeConfigName: String(port) },
  }).finish();
  const manages = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
  return listener(`0.0.0.0_${port}`, "0.0.0.0", port, {
    filterChains: [
      {
        filterChainMatch: { transportProtocol: "raw_buffer", applicationProtocols: ["http/1.1", "h2c"] },
        filters: [
          { name: "envoy.filters.network.http_connection_manager", typedConfig: any(manages, manager) },
        ],
      },
    ],
    defaultFilterChain: passthroughChain(catchAll),
  });
}

function passthroughChain(catchAll: string): envoy.FilterChain.$Properties {
  return {
    name: "PassthroughFilterChain",
    filters: [tcpProxyFilter({ statPrefix: catchAll, cluster: catchAll })],
  };
}

function virtualOutbound(catchAll: string): Uint8Array {
  const port = 15_001;
  return envoy.Listener.encode({
    name: "virtualOutbound",
    address: { socketAddress: { address: "0.0.0.0", portValue: port } },
    filterChains: [
      {
        name: "virtualOutbound-blackhole",
        filterChainMatch: { destinationPort: { value: port } },
        filters: [tcpProxyFilter({ statPrefix: "BlackHoleCluster", cluster: "BlackHoleCluster" })],
      },
      {
        name: "virtualOutbound-catchall-tcp",
        filters: [tcpProxyFilter({ statPrefix: catchAll, cluster: catchAll })],
      },
    ],
    useOriginalDst: { value: true },
    trafficDirection: OUTBOUND,
  }).finish();
}

/** `hbone`: some peer is reached by it. */
function builtInClusters(hbone: boolean): [string, Uint8Array][] {
  const connectTimeout = { seconds: 10 };
  const blackHole = { name: "BlackHoleCluster", type: 0, connectTimeout };
  const passthrough = {
    name: "PassthroughCluster",
    type: ORIGINAL_DST,
    lbPolicy: CLUSTER_PROVIDED,
    connectTimeout,
  };
  const originate = {
    name: CONNECT_ORIGINATE,
    type: ORIGINAL_DST,
    lbPolicy: CLUSTER_PROVIDED,
    connectTimeout,
    transportSocket: meshTls(["h2"], [{ prefix: `spiffe://${TRUST_DOMAIN}/` }]),
  };
  return [blackHole, passthrough, ...(hbone ? [originate] : [])].map((message) => [
    message.name,
    envoy.Cluster.encode(message).finish(),
  ]);
}

function virtualHost(service: DemoService): Uint8Array {
  const { host, port } = service;
  const clusters = shares(service);
  const route: envoy.RouteAction.$Properties = { timeout: {} };
  if (clusters.length > 1) {
    route.weightedClusters = {
      clusters: clusters.map(({ name, weight }) => ({ name, weight: { value: weight } })),
    };
  } else route.cluster = clusters[0]?.name ?? clusterName(service);
  if (hashes(service)) route.hashPolicy = [{ connectionProperties: { sourceIp: true } }];
  // Like istiod: one of the addresses. The name table has all of them.
  const [address = ""] = service.addresses;
  return envoy.VirtualHost.encode({
    name: `${host}:${port}`,
    domains: [host, `${host}.`, address.includes(":") ? `[${address}]` : address],
    routes: [{ name: "default", match: { prefix: "/" }, route }],
  }).finish();
}

function routeTable(port: number, hosts: readonly Uint8Array[], catchAll: string): Uint8Array {
  const blocked = catchAll === "BlackHoleCluster";
  const name = blocked ? "block_all" : "allow_any";
  const action: envoy.Route.$Properties = blocked
    ? { directResponse: { status: 502 } }
    : { route: { cluster: catchAll, timeout: {} } };
  const fallback = envoy.VirtualHost.encode({
    name,
    domains: ["*"],
    routes: [{ name, match: { prefix: "/" }, ...action }],
  }).finish();
  // Field 2 of RouteConfiguration, as the virtual hosts are encoded already.
  return Bytes.message(
    { 1: String(port), 2: [...hosts, fallback] },
    envoy.RouteConfiguration.encode({ validateClusters: {}, ignorePortInHostMatching: true }).finish(),
  );
}

function nameTable(hosts: ReadonlyMap<string, readonly string[]>): Uint8Array {
  const table: Record<string, istio.NameInfo.$Properties> = {};
  for (const [host, addresses] of hosts) {
    const ips = [...new Set(addresses)];
    if (ips.length > 0) table[host] = { ips, registry: "External" };
  }
  return istio.NameTable.encode({ table }).finish();
}
