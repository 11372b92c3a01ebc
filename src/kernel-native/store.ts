/** istiod's resources, flattened, and the changes since the last compilation. */
import { MalformedResource, type ResourceType } from "../istiod/stream/sink.ts";
import { sameLocalities, sameNotes } from "../mesh/same.ts";
import type { SanMatch } from "../mesh/transport.ts";
import type { WorkloadIndex } from "../mesh/workload.ts";
import { type ClusterRecord, unknownCluster } from "./resources/cluster.ts";
import { ClusterReader } from "./resources/cluster-reader.ts";
import { type EndpointsRecord, flattenEndpoints } from "./resources/endpoint.ts";
import { flattenListener, type ListenerRecord } from "./resources/listener.ts";
import { type NamesRecord, NameTableReader, NO_NAMES } from "./resources/names.ts";
import { flattenRoutes, type RoutesRecord } from "./resources/route.ts";
import { CONNECT_ORIGINATE, readHboneSans, withHbone } from "./resources/transport-sockets.ts";

/** The changes for the next compilation. */
export interface Dirty {
  /** Names of changed and removed clusters. */
  clusters: Set<string>;
  /** EDS names of changed endpoints. */
  endpoints: Set<string>;
  /** Listeners, routes or names changed. */
  frontends: boolean;
}

export class Store {
  /** Clusters that concern outgoing connections. */
  readonly clusters = new Map<string, ClusterRecord>();
  readonly endpoints = new Map<string, EndpointsRecord>();
  readonly listeners = new Map<string, ListenerRecord>();
  readonly routes = new Map<string, RoutesRecord>();
  names: NamesRecord = NO_NAMES;
  /** What peers that are reached by HBONE must be called; empty: istiod has not said it. */
  hboneSans: readonly SanMatch[] = [];
  /** Names of malformed resources without an earlier version, by type: their content is unknown. */
  readonly lost: Readonly<Record<ResourceType, Set<string>>> = {
    cluster: new Set(),
    endpoints: new Set(),
    listener: new Set(),
    route: new Set(),
    names: new Set(),
    address: new Set(),
    authorization: new Set(),
  };
  readonly #allowPlaintext: boolean;
  readonly #tunnel: boolean;
  readonly #clusterReader: ClusterReader;
  readonly #nameTableReader = new NameTableReader();
  /** Clusters by EDS name; nearly always one. */
  readonly #users = new Map<string, string | readonly string[]>();
  readonly #wantedEndpoints = new Set<string>();
  readonly #wantedRoutes = new Set<string>();
  /** Number of listeners that use a route configuration, by its name. */
  readonly #routeUsers = new Map<string, number>();
  #dirty: Dirty = clean();

  readonly #workloads: WorkloadIndex | undefined;

  constructor(options: { allowPlaintext: boolean; tunnel?: boolean; workloads?: WorkloadIndex }) {
    this.#tunnel = options.tunnel ?? false;
    this.#workloads = options.workloads;
    this.#allowPlaintext = options.allowPlaintext;
    this.#clusterReader = new ClusterReader(options);
  }

  /** Flattens and stores one resource. Throws MalformedResource; the stored version then stays. */
  upsert(type: ResourceType, name: string, bytes: Uint8Array): void {
    try {
      this.#put(type, name, bytes);
    } catch (error) {
      if (!this.#holds(type, name)) this.#lose(type, name);
      throw error;
    }
    this.lost[type].delete(name);
  }

  /** Whether listeners use routes of this name and istiod has not sent them. */
  awaits(route: string): boolean {
    return this.#wantedRoutes.has(route) && !this.routes.has(route);
  }

  #put(type: ResourceType, name: string, bytes: Uint8Array): void {
    switch (type) {
      case "cluster":
        if (name === CONNECT_ORIGINATE && this.#tunnel) this.#putHboneSans(readHboneSans(bytes));
        this.#putCluster(name, this.#clusterReader.read(name, bytes));
        break;
      case "endpoints":
        this.#putEndpoints(
          name,
          flattenEndpoints(name, bytes, this.#allowPlaintext, this.#workloads, this.#tunnel),
        );
        break;
      case "listener":
        this.#putListener(name, flattenListener(name, bytes));
        break;
      case "route":
        this.routes.set(name, flattenRoutes(name, bytes));
        this.#dirty.frontends = true;
        break;
      case "names":
        this.names = this.#nameTableReader.read(name, bytes);
        this.#dirty.frontends = true;
        break;
      default:
        throw new MalformedResource(name, `resources of type ${type} are not used in this mode`);
    }
  }

  /** Removes one resource. Does nothing when there is none. */
  remove(type: ResourceType, name: string): void {
    if (this.lost[type].delete(name)) this.#dirty.frontends = true;
    switch (type) {
      case "cluster":
        this.#putCluster(name, undefined);
        break;
      case "endpoints":
        if (this.endpoints.delete(name)) this.#dirty.endpoints.add(name);
        break;
      case "listener":
        this.#putListener(name, undefined);
        break;
      case "route":
        if (this.routes.delete(name)) this.#dirty.frontends = true;
        break;
      case "names":
        this.names = NO_NAMES;
        this.#dirty.frontends = true;
    }
  }

  /** The names to subscribe to. The sets change with the store. */
  wanted(type: "endpoints" | "route"): ReadonlySet<string> {
    return type === "endpoints" ? this.#wantedEndpoints : this.#wantedRoutes;
  }

  /** The clusters with this EDS name. */
  usersOf(endpointsName: string): readonly string[] {
    const users = this.#users.get(endpointsName);
    if (users === undefined) return [];
    return typeof users === "string" ? [users] : users;
  }

  get isDirty(): boolean {
    const { clusters, endpoints, frontends } = this.#dirty;
    return frontends || clusters.size > 0 || endpoints.size > 0;
  }

  /** Marks these clusters for the next compilation. */
  touch(clusters: Iterable<string>): void {
    for (const cluster of clusters) this.#dirty.clusters.add(cluster);
  }

  /** Marks all frontends for the next compilation. */
  touchFrontends(): void {
    this.#dirty.frontends = true;
  }

  /** Gives the changes since the last call, and clears them. */
  takeDirty(): Dirty {
    const dirty = this.#dirty;
    this.#dirty = clean();
    return dirty;
  }

  /** They are the same for all clusters. */
  #putHboneSans(sans: readonly SanMatch[]): void {
    if (JSON.stringify(sans) === JSON.stringify(this.hboneSans)) return;
    this.hboneSans = sans;
    for (const [name, { demands }] of this.clusters)
      if (demands && withHbone(demands, sans) !== demands) this.#dirty.clusters.add(name);
  }

  #holds(type: ResourceType, name: string): boolean {
    switch (type) {
      case "cluster":
        return this.clusters.has(name) && !this.lost.cluster.has(name);
      case "endpoints":
        return this.endpoints.has(name);
      case "listener":
        return this.listeners.has(name);
      case "route":
        return this.routes.has(name);
      default:
        return this.names !== NO_NAMES;
    }
  }

  #lose(type: ResourceType, name: string): void {
    this.lost[type].add(name);
    if (type === "cluster") this.#putCluster(name, unknownCluster(name));
    else if (type !== "endpoints") this.#dirty.frontends = true;
  }

  #putCluster(name: string, record: ClusterRecord | undefined): void {
    const before = this.clusters.get(name);
    if (before === undefined && record === undefined) return;
    const old = before?.discovery.kind === "eds" ? before.discovery.endpointsName : undefined;
    const now = record?.discovery.kind === "eds" ? record.discovery.endpointsName : undefined;
    if (old !== now) {
      if (old !== undefined) this.#leave(old, name);
      if (now !== undefined) this.#join(now, name);
    }
    if (record === undefined) this.clusters.delete(name);
    else this.clusters.set(name, record);
    this.#dirty.clusters.add(name);
  }

  #putEndpoints(name: string, record: EndpointsRecord): void {
    const before = this.endpoints.get(name);
    // After a restart istiod sends endpoints in another order.
    if (before !== undefined && sameEndpoints(before, record)) return;
    this.endpoints.set(name, record);
    this.#dirty.endpoints.add(name);
  }

  #putListener(name: string, record: ListenerRecord | undefined): void {
    const before = this.listeners.get(name);
    if (before === undefined && record === undefined) return;
    for (const route of record?.routes ?? []) {
      this.#routeUsers.set(route, (this.#routeUsers.get(route) ?? 0) + 1);
      this.#wantedRoutes.add(route);
    }
    for (const route of before?.routes ?? []) {
      const left = (this.#routeUsers.get(route) ?? 1) - 1;
      if (left > 0) this.#routeUsers.set(route, left);
      else {
        this.#routeUsers.delete(route);
        this.#wantedRoutes.delete(route);
      }
    }
    if (record === undefined) this.listeners.delete(name);
    else this.listeners.set(name, record);
    this.#dirty.frontends = true;
  }

  #join(endpointsName: string, cluster: string): void {
    const users = this.usersOf(endpointsName);
    this.#users.set(endpointsName, users.length === 0 ? cluster : [...users, cluster]);
    this.#wantedEndpoints.add(endpointsName);
  }

  #leave(endpointsName: string, cluster: string): void {
    const users = this.usersOf(endpointsName).filter((user) => user !== cluster);
    if (users.length > 0) this.#users.set(endpointsName, users);
    else {
      this.#users.delete(endpointsName);
      this.#wantedEndpoints.delete(endpointsName);
    }
  }
}

function clean(): Dirty {
  return { clusters: new Set(), endpoints: new Set(), frontends: false };
}

function sameEndpoints(a: EndpointsRecord, b: EndpointsRecord): boolean {
  return (
    a.overprovisioning === b.overprovisioning &&
    a.prefersTls === b.prefersTls &&
    a.onlyGateways === b.onlyGateways &&
    sameNotes(a.notes, b.notes) &&
    sameLocalities(a.localities, b.localities)
  );
}
