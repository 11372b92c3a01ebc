/** The mesh's facts about services: endpoints, limits, and the services of local ports. */

import type { Tables } from "../datapath/tables/tables.ts";
import { parseAddress } from "../mesh/address.ts";
import { ENDPOINT_WORDS } from "../mesh/endpoint-list.ts";
import type { Cluster, Mesh, Target } from "../mesh/model.ts";
import type { ServiceNode } from "./model.ts";
import { clusterState } from "./table-state.ts";

/** Lifetime of the index of the mesh, which changes in place; milliseconds. */
const FRESH = 5_000;

type State = Pick<ServiceNode, "endpoints" | "limit">;

export class ServiceStates {
  readonly #mesh: () => Mesh | undefined;
  /** The machine's addresses, in the form of an endpoint's words. */
  readonly #addresses: readonly Uint32Array[];
  #builtAt = Number.NEGATIVE_INFINITY;
  /** By service, then by the name of a cluster that its frontends lead to: the cluster's share of the connections. */
  #shares = new Map<string, Map<string, number>>();
  #ports = new Map<number, string>();

  /** `addresses` are the machine's; invalid ones are ignored. */
  constructor(mesh: () => Mesh | undefined, addresses: readonly string[]) {
    this.#mesh = mesh;
    this.#addresses = addresses.flatMap((address) => {
      const bytes = parseAddress(address);
      return bytes ? [new Uint32Array(bytes.slice().buffer)] : [];
    });
  }

  /** `service` is "host:port"; `now` in nanoseconds of the monotonic clock. */
  of(service: string, tables: Tables, now: number): State {
    this.#build();
    const mesh = this.#mesh();
    const shares = this.#shares.get(service);
    if (!mesh || !shares) return {};
    const endpoints = { known: 0, usable: 0, largestShare: 0 };
    let limit: State["limit"];
    for (const [name, share] of shares) {
      const cluster = mesh.clusters.get(name);
      if (!cluster) continue;
      for (const locality of cluster.localities) {
        endpoints.known += locality.endpoints.length;
        for (let i = 0; i < locality.endpoints.length; i++)
          if (locality.endpoints.healthy(i)) endpoints.usable++;
      }
      endpoints.largestShare = Math.max(endpoints.largestShare, share * largestShareOf(cluster));
      const { live, ejected } = clusterState(tables, name, now);
      endpoints.usable -= ejected;
      if (cluster.maxConnections > 0 && (!limit || live / cluster.maxConnections > limit.live / limit.most))
        limit = { live, most: cluster.maxConnections };
    }
    endpoints.usable = Math.max(0, endpoints.usable);
    return { endpoints, ...(limit ? { limit } : {}) };
  }

  /** "host:port" of the service of a local port. */
  inbound(port: number): string | undefined {
    this.#build();
    return this.#ports.get(port);
  }

  #build(): void {
    if (performance.now() - this.#builtAt < FRESH) return;
    this.#builtAt = performance.now();
    this.#shares = new Map();
    this.#ports = new Map();
    const mesh = this.#mesh();
    if (!mesh) return;
    for (const { service, target } of mesh.frontends.values()) {
      let shares = this.#shares.get(service);
      if (!shares) {
        shares = new Map();
        this.#shares.set(service, shares);
      }
      for (const [cluster, share] of sharesOf(mesh, target))
        shares.set(cluster, Math.max(share, shares.get(cluster) ?? 0));
    }
    for (const { service, localities } of mesh.clusters.values())
      for (const { endpoints } of localities)
        for (let i = 0; i < endpoints.length; i++)
          if (this.#isOwn(endpoints.words, i * ENDPOINT_WORDS) && !this.#ports.has(endpoints.port(i)))
            this.#ports.set(endpoints.port(i), service);
  }

  /** Compares words, because formatting a hundred thousand addresses would block the agent longer than a scrape. */
  #isOwn(words: Uint32Array, at: number): boolean {
    return this.#addresses.some(
      (own) =>
        words[at + 3] === own[3] &&
        words[at] === own[0] &&
        words[at + 1] === own[1] &&
        words[at + 2] === own[2],
    );
  }
}

/** The clusters that a target leads to, and their shares of its connections; those of weight 0 are left out. */
function sharesOf(mesh: Mesh, target: Target): [cluster: string, share: number][] {
  if (target.kind === "cluster") return [[target.cluster, 1]];
  if (target.kind !== "split") return [];
  const shares = mesh.splits.get(target.split)?.shares ?? [];
  const all = shares.reduce((sum, { weight }) => sum + weight, 0);
  return shares.flatMap(({ cluster, weight }): [string, number][] =>
    weight > 0 ? [[cluster, weight / all]] : [],
  );
}

/**
 * The share of a cluster's connections that one endpoint gets at most, by weights alone: 1 where it is chosen by the
 * source's address, which is always this machine's.
 */
function largestShareOf({ balance, localities }: Cluster): number {
  if (balance.policy === "ring-hash" || balance.policy === "maglev") return 1;
  let first = Number.POSITIVE_INFINITY;
  let largest = 0;
  let sum = 0;
  for (const { priority, endpoints } of localities) {
    if (priority > first) continue;
    for (let i = 0; i < endpoints.length; i++) {
      if (!endpoints.healthy(i)) continue;
      if (priority < first) {
        first = priority;
        largest = 0;
        sum = 0;
      }
      const weight = endpoints.weight(i);
      largest = Math.max(largest, weight);
      sum += weight;
    }
  }
  return sum === 0 ? 1 : largest / sum;
}
