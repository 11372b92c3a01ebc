/** Resources as istiod writes them, in short, for tests. */
import { envoy, istio } from "../resources/envoy.gen.js";
import { ownCluster } from "../resources/service.ts";

export interface GivenEndpoint {
  address: string;
  port: number;
  weight?: number;
  health?: number;
  tls?: boolean;
  workload?: string;
}

export interface GivenLocality {
  region?: string;
  zone?: string;
  priority?: number;
  weight?: number;
  endpoints: GivenEndpoint[];
}

const text = (value: string) => ({ stringValue: value });
const TLS = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const ADS = { ads: {}, resourceApiVersion: 2 };

export function any(type: string, value: Uint8Array = new Uint8Array(0)) {
  return { typeUrl: `type.googleapis.com/${type}`, value };
}

export function loadAssignment(
  name: string,
  localities: GivenLocality[],
): envoy.ClusterLoadAssignment.$Properties {
  return {
    clusterName: name,
    endpoints: localities.map(({ region = "", zone = "", priority = 0, weight, endpoints }) => ({
      locality: { region, zone },
      priority,
      ...(weight === undefined ? {} : { loadBalancingWeight: { value: weight } }),
      lbEndpoints: endpoints.map((one) => ({
        endpoint: { address: { socketAddress: { address: one.address, portValue: one.port } } },
        healthStatus: one.health ?? 0,
        ...(one.weight === undefined ? {} : { loadBalancingWeight: { value: one.weight } }),
        metadata: {
          filterMetadata: {
            ...(one.tls ? { "envoy.transport_socket_match": { fields: { tlsMode: text("istio") } } } : {}),
            istio: { fields: { workload: text(one.workload ?? "app;shop;app;v1;Kubernetes") } },
          },
        },
      })),
    })),
  };
}

export function endpoints(name: string, localities: GivenLocality[]): Uint8Array {
  return envoy.ClusterLoadAssignment.encode(loadAssignment(name, localities)).finish();
}

/** The transport sockets of auto-mTLS. */
export function autoTls(sni: string): envoy.TransportSocketMatch.$Properties[] {
  return [
    { name: "hbone", match: { fields: { tunnel: text("http") } }, transportSocket: tlsSocket("") },
    { name: "tlsMode-istio", match: { fields: { tlsMode: text("istio") } }, transportSocket: tlsSocket(sni) },
    { name: "tlsMode-disabled", match: {}, transportSocket: RAW },
  ];
}

export const RAW = {
  name: "envoy.transport_sockets.raw_buffer",
  typedConfig: any("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"),
};

export function tlsSocket(sni: string): envoy.TransportSocket.$Properties {
  const value = envoy.UpstreamTlsContext.encode({ sni }).finish();
  return { name: "envoy.transport_sockets.tls", typedConfig: any(TLS, value) };
}

/** An EDS cluster; `more` adds to it or overrides. */
export function cluster(name: string, more: envoy.Cluster.$Properties = {}): Uint8Array {
  return envoy.Cluster.encode({
    name,
    type: 3,
    edsClusterConfig: { edsConfig: ADS, serviceName: name },
    connectTimeout: { seconds: 10 },
    lbPolicy: 1,
    commonLbConfig: { healthyPanicThreshold: {} },
    transportSocketMatches: autoTls(`outbound_.${name}`),
    ...more,
  }).finish();
}

/** A cluster of names, with `targets` as HOST or address. */
export function dnsCluster(
  name: string,
  targets: string[],
  more: envoy.Cluster.$Properties = {},
): Uint8Array {
  const given = targets.map((address) => ({ address, port: 443 }));
  return cluster(name, {
    type: 1,
    edsClusterConfig: null,
    dnsLookupFamily: 1,
    dnsRefreshRate: { seconds: 60 },
    respectDnsTtl: true,
    loadAssignment: loadAssignment(name, [{ endpoints: given }]),
    ...more,
  });
}

export interface GivenChain {
  cluster?: string;
  shares?: [string, number][];
  routes?: string;
  prefixes?: string[];
  serverNames?: string[];
  applications?: string[];
  transport?: string;
  sourceIpHash?: boolean;
  more?: envoy.TcpProxy.$Properties;
}

export function chain(given: GivenChain): envoy.FilterChain.$Properties {
  const filters: envoy.Filter.$Properties[] = [
    { name: "envoy.filters.network.mongo_proxy", typedConfig: any("envoy.extensions.MongoProxy") },
  ];
  if (given.routes !== undefined) {
    const value = envoy.HttpConnectionManager.encode({
      rds: { configSource: ADS, routeConfigName: given.routes },
    }).finish();
    const type = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    filters.push({ name: "envoy.filters.network.http_connection_manager", typedConfig: any(type, value) });
  } else {
    const value = envoy.TcpProxy.encode({
      statPrefix: "tcp",
      ...(given.shares
        ? { weightedClusters: { clusters: given.shares.map(([name, weight]) => ({ name, weight })) } }
        : { cluster: given.cluster ?? "" }),
      ...(given.sourceIpHash ? { hashPolicy: [{ sourceIp: {} }] } : {}),
      ...given.more,
    }).finish();
    filters.push({
      name: "envoy.filters.network.tcp_proxy",
      typedConfig: any("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", value),
    });
  }
  return {
    filters,
    filterChainMatch: {
      prefixRanges: (given.prefixes ?? []).map((prefix) => {
        const [addressPrefix = "", length = "0"] = prefix.split("/");
        return { addressPrefix, prefixLen: { value: Number(length) } };
      }),
      serverNames: given.serverNames ?? [],
      applicationProtocols: given.applications ?? [],
      transportProtocol: given.transport ?? "",
    },
  };
}

/** A listener called ADDRESS_PORT, as istiod calls them. */
export function listener(
  address: string,
  port: number,
  chains: GivenChain[],
  more: envoy.Listener.$Properties = {},
): [string, Uint8Array] {
  const name = more.name ?? `${address}_${port}`;
  const bytes = envoy.Listener.encode({
    name,
    address: { socketAddress: { address, portValue: port } },
    filterChains: chains.map(chain),
    trafficDirection: 2,
    bindToPort: {},
    ...more,
  }).finish();
  return [name, bytes];
}

/** The listener for what no other one takes. */
export function catchAll(cluster: string): [string, Uint8Array] {
  return listener("0.0.0.0", 15001, [{ cluster }], {
    name: "virtualOutbound",
    useOriginalDst: { value: true },
  });
}

export interface GivenHost {
  /** host:port */
  name: string;
  domains?: string[];
  routes?: envoy.Route.$Properties[];
}

/** A route for every request. */
export function toCluster(cluster: string, more: envoy.RouteAction.$Properties = {}) {
  return { match: { prefix: "/" }, route: { cluster, timeout: {}, ...more } };
}

export function toShares(...shares: [string, number][]): envoy.Route.$Properties {
  const clusters = shares.map(([name, weight]) => ({ name, weight: { value: weight } }));
  return { match: { prefix: "/" }, route: { weightedClusters: { clusters }, timeout: {} } };
}

export function routes(name: string, hosts: GivenHost[]): Uint8Array {
  return envoy.RouteConfiguration.encode({
    name,
    virtualHosts: hosts.map((host) => {
      const colon = host.name.lastIndexOf(":");
      const own = ownCluster(host.name.slice(0, colon), Number(host.name.slice(colon + 1)));
      return {
        name: host.name,
        domains: [host.name.slice(0, colon), ...(host.domains ?? [])],
        routes: host.routes ?? [toCluster(own)],
      };
    }),
  }).finish();
}

export function names(table: Record<string, string[]>): Uint8Array {
  return istio.NameTable.encode({
    table: Object.fromEntries(Object.entries(table).map(([host, ips]) => [host, { ips }])),
  }).finish();
}
