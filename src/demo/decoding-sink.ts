/** For tests: keeps a control plane's resources as decoded messages, and finds missing references. */
import { workload } from "../dual-engine/records/workload.gen.js";
import type { ResourceSink, ResourceType } from "../istiod/stream/sink.ts";
import { envoy, istio } from "../kernel-native/resources/envoy.gen.js";

const EDS = 3;
const TCP_PROXY = "envoy.filters.network.tcp_proxy";
const HTTP_MANAGER = "envoy.filters.network.http_connection_manager";

export class DecodingSink implements ResourceSink {
  readonly clusters = new Map<string, envoy.Cluster>();
  readonly endpoints = new Map<string, envoy.ClusterLoadAssignment>();
  readonly listeners = new Map<string, envoy.Listener>();
  readonly routes = new Map<string, envoy.RouteConfiguration>();
  readonly names = new Map<string, istio.NameTable>();
  readonly addresses = new Map<string, workload.Address>();
  readonly calls: string[] = [];
  /** The versions committed. */
  readonly commits: string[] = [];

  /** Type and name of all stored resources, sorted. */
  get stored(): string[] {
    const all = [
      ["cluster", this.clusters],
      ["endpoints", this.endpoints],
      ["listener", this.listeners],
      ["names", this.names],
      ["route", this.routes],
    ] as const;
    return all.flatMap(([type, map]) => [...map.keys()].map((name) => `${type} ${name}`)).sort();
  }

  upsert(type: ResourceType, name: string, bytes: Uint8Array): void {
    this.calls.push(`upsert ${type} ${name}`);
    if (type === "cluster") this.clusters.set(name, envoy.Cluster.decode(bytes));
    if (type === "endpoints") this.endpoints.set(name, envoy.ClusterLoadAssignment.decode(bytes));
    if (type === "listener") this.listeners.set(name, envoy.Listener.decode(bytes));
    if (type === "route") this.routes.set(name, envoy.RouteConfiguration.decode(bytes));
    if (type === "address") this.addresses.set(name, workload.Address.decode(bytes));
    if (type === "names") this.names.set(name, istio.NameTable.decode(bytes));
  }

  remove(type: ResourceType, name: string): void {
    this.calls.push(`remove ${type} ${name}`);
    const maps = {
      cluster: this.clusters,
      endpoints: this.endpoints,
      listener: this.listeners,
      route: this.routes,
      names: this.names,
      address: this.addresses,
      authorization: new Map(),
    };
    maps[type].delete(name);
  }

  wanted(type: "endpoints" | "route"): ReadonlySet<string> {
    const wanted = new Set<string>();
    if (type === "endpoints") {
      for (const { name, type, edsClusterConfig } of this.clusters.values()) {
        if (type === EDS) wanted.add(edsClusterConfig?.serviceName || name);
      }
    } else {
      for (const listener of this.listeners.values()) {
        for (const filter of filtersOf(listener, HTTP_MANAGER)) {
          const name = envoy.HttpConnectionManager.decode(filter).rds?.routeConfigName;
          if (name) wanted.add(name);
        }
      }
    }
    return wanted;
  }

  commit(push: { version: string }): void {
    this.commits.push(push.version);
  }

  /** The TCP proxies of a listener, in the order of its chains, the default chain last. */
  tcpProxies(listener: string): envoy.TcpProxy[] {
    const found = this.listeners.get(listener);
    return found ? filtersOf(found, TCP_PROXY).map((value) => envoy.TcpProxy.decode(value)) : [];
  }

  /** Outbound clusters that listeners or routes point to and that are missing, or lack their endpoints. */
  get dangling(): string[] {
    const targets = new Set<string>();
    for (const name of this.listeners.keys()) {
      for (const { cluster, weightedClusters } of this.tcpProxies(name)) {
        if (cluster) targets.add(cluster);
        for (const share of weightedClusters?.clusters ?? []) if (share.name) targets.add(share.name);
      }
    }
    for (const { virtualHosts } of this.routes.values()) {
      for (const { route } of virtualHosts?.flatMap(({ routes }) => routes ?? []) ?? []) {
        if (route?.cluster) targets.add(route.cluster);
        for (const share of route?.weightedClusters?.clusters ?? []) if (share.name) targets.add(share.name);
      }
    }
    return [...targets].filter((name) => {
      const cluster = this.clusters.get(name);
      if (!name.startsWith("outbound")) return false;
      return !cluster || (cluster.type === EDS && !this.endpoints.has(name));
    });
  }
}

function filtersOf(listener: envoy.Listener, name: string): Uint8Array[] {
  const chains = [...(listener.filterChains ?? []), listener.defaultFilterChain];
  return chains
    .flatMap((chain) => chain?.filters ?? [])
    .filter((filter) => filter.name === name)
    .map((filter) => filter.typedConfig?.value ?? new Uint8Array(0));
}
