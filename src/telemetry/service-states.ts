/** What the mesh says of a service that counters can't: its endpoints and limits, and which service a local port is. */

import type { Tables } from "../datapath/tables/tables.ts";
import type { Cluster, Mesh } from "../mesh/model.ts";
import type { ServiceNode } from "./model.ts";
import { clusterState } from "./table-state.ts";

/** How long an index of the mesh serves, milliseconds: it changes in place. */
const FRESH = 5_000;

export class ServiceStates {
  readonly #mesh: () => Mesh | undefined;
  readonly #addresses: ReadonlySet<string>;
  #builtAt = Number.NEGATIVE_INFINITY;
  #clusters = new Map<string, Cluster[]>();
  #ports = new Map<number, string>();

  /** `addresses` are the machine's own. */
  constructor(mesh: () => Mesh | undefined, addresses: readonly string[]) {
    this.#mesh = mesh;
    this.#addresses = new Set(addresses);
  }

  /** `service` is "host:port"; `now` in nanoseconds of the monotonic clock. */
  of(service: string, tables: Tables, now: number): Pick<ServiceNode, "endpoints" | "limit"> {
    this.#build();
    const clusters = this.#clusters.get(service);
    if (!clusters) return {};
    let known = 0;
    let usable = 0;
    let limit: ServiceNode["limit"];
    for (const cluster of clusters) {
      for (const { endpoints } of cluster.localities) {
        known += endpoints.length;
        for (let i = 0; i < endpoints.length; i++) if (endpoints.healthy(i)) usable++;
      }
      const { live, ejected } = clusterState(tables, cluster.name, now);
      usable -= ejected;
      if (cluster.maxConnections > 0 && (!limit || live / cluster.maxConnections > limit.live / limit.most))
        limit = { live, most: cluster.maxConnections };
    }
    return { endpoints: { known, usable: Math.max(0, usable) }, ...(limit ? { limit } : {}) };
  }

  /** "host:port" of the service that leads to this machine's port. */
  inbound(port: number): string | undefined {
    this.#build();
    return this.#ports.get(port);
  }

  #build(): void {
    if (performance.now() - this.#builtAt < FRESH) return;
    this.#builtAt = performance.now();
    this.#clusters = new Map();
    this.#ports = new Map();
    for (const cluster of this.#mesh()?.clusters.values() ?? []) {
      const all = this.#clusters.get(cluster.service);
      if (all) all.push(cluster);
      else this.#clusters.set(cluster.service, [cluster]);
      for (const { endpoints } of cluster.localities)
        for (let i = 0; i < endpoints.length; i++)
          if (this.#addresses.has(endpoints.address(i)) && !this.#ports.has(endpoints.port(i)))
            this.#ports.set(endpoints.port(i), cluster.service);
    }
  }
}
