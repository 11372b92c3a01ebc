/**
 * Writes the difference between a mesh and the kernel's tables: first new records that no reader uses, then one store for
 * each cluster and each frontend, then removals. Unchanged records are not touched.
 */

import { frontendKey } from "../../mesh/frontend.ts";
import type { Changes, Frontend, Mesh, Service, Target } from "../../mesh/model.ts";
import { faultPoint } from "../../runtime/fault.ts";
import { DeferredFree } from "../tables/deferred-free.ts";
import type { PlacedFrontend } from "../tables/frontends.ts";
import { Ids } from "../tables/ids.ts";
import { linesOfNames, NameLines, NameSpace } from "../tables/names.ts";
import { Quarantine } from "../tables/quarantine.ts";
import type { MayReuse, Tables } from "../tables/tables.ts";
import { AdoptedFrontends } from "./adopted-frontends.ts";
import { ClusterTable, splitName, splitOf } from "./cluster-table.ts";
import { SLOTS_PER_LINE } from "./descriptor.ts";
import type { Others } from "./others.ts";
import { encodeTarget, reasonNumber } from "./target.ts";

/** Quarantine of a removed service's id, because sockets carry it. */
const SERVICE_REST_MS = 600_000;

export interface PublishReport {
  /** Records and words written; 0 without a difference. */
  writes: number;
  milliseconds: number;
  frontends: number;
  clusters: number;
}

export class Publisher {
  readonly #tables: Tables;
  readonly #others: () => Others;
  readonly #grace: DeferredFree;
  readonly #clusters: ClusterTable;
  readonly #services: NameSpace;
  readonly #restingServices = new Quarantine(SERVICE_REST_MS, () => true);
  readonly #frontendIds: Ids;
  readonly #frontends = new Map<string, PlacedFrontend>();
  /** The number of targets (frontends, splits, fallback) that lead to each cluster name. */
  readonly #references = new Map<string, number>();
  /** Frontends that the kernel had at the start and no mesh has had since. */
  readonly #adopted: AdoptedFrontends;
  #splits = new Map<string, string[]>();
  #targets = new Map<string, string>();

  /**
   * `others` returns the present other generations. `report` gets errors of work after a grace period, outside of a push; it
   * may throw.
   */
  constructor(tables: Tables, others: () => Others, report: (error: unknown) => void) {
    this.#tables = tables;
    this.#grace = new DeferredFree(report);
    this.#others = others;
    const mayReuse: MayReuse = (kind, id) => tables.mayReuse?.(kind, id) ?? true;
    const lines = new NameLines(tables.nameLines, [tables.clusterNames, tables.serviceNames]);
    this.#services = new NameSpace(tables.serviceNames, lines, 1, undefined, (id) => mayReuse("service", id));
    const serviceId = (name: string) => this.#services.id(name) ?? this.#addService(name);
    const alone = () => others() === "none";
    this.#clusters = new ClusterTable(tables, lines, this.#grace, alone, serviceId, mayReuse);
    const given = new Uint8Array(tables.targets.capacity);
    for (const placed of [...tables.exact.list(), ...tables.prefixes.list()]) {
      this.#frontends.set(frontendKey({ match: placed.match, protocol: "tcp" }), placed);
      given[placed.id] = 1;
    }
    this.#frontendIds = new Ids(0, given);
    this.#adopted = new AdoptedFrontends(this.#frontends);
    tables.serviceCounts.reserve(1);
  }

  publish(mesh: Mesh, changes: Changes): PublishReport {
    const start = performance.now();
    const tables = this.#tables;
    const change = changes.everything ? this.#difference(mesh) : changes;
    if (changes.everything) {
      this.#reserve(mesh);
      this.#adopted.look(mesh, (id) => tables.targets.long(id));
    }
    const unreferenced = new Set<string>();
    const writes =
      this.#putClusters(mesh, change.clusters) +
      this.#putSplits(mesh, change.splits, unreferenced) +
      this.#putServices(mesh, change.services) +
      this.#putFrontends(mesh, change.frontends, unreferenced) +
      this.#putFallback(mesh, unreferenced) +
      this.#removeClusters(mesh, [...change.clusters, ...unreferenced]);
    return {
      writes,
      milliseconds: performance.now() - start,
      frontends: this.#frontends.size,
      clusters: mesh.clusters.size,
    };
  }

  /** Frees everything that waits for its grace period, so that the next start finds nothing to free. */
  close(): void {
    this.#grace.close();
  }

  /** Leaves waiting releases to the next publisher, which reads the tables. */
  abandon(): void {
    this.#grace.abandon();
  }

  /** All frontends of the mesh and all that only the kernel has. */
  #difference(mesh: Mesh) {
    const clusters: string[] = [];
    const splits: string[] = [];
    for (const name of this.#clusters.names()) {
      const split = splitOf(name);
      if (split === undefined) clusters.push(name);
      else splits.push(split);
    }
    return {
      services: union(mesh.services, this.#services.names()),
      frontends: union(mesh.frontends, this.#frontends.keys()),
      splits: union(mesh.splits, splits),
      clusters: union(mesh.clusters, clusters),
    };
  }

  /** Grows every table once to the needed size. Growing chunk by chunk would wait for the kernel each time. */
  #reserve(mesh: Mesh): void {
    let endpoints = 0;
    let slotLines = 0;
    for (const { localities } of mesh.clusters.values()) {
      let own = 0;
      for (const locality of localities) own += locality.endpoints.length;
      endpoints += own;
      slotLines += Math.ceil(own / SLOTS_PER_LINE);
    }
    const clusters = mesh.clusters.size + mesh.splits.size;
    this.#tables.reserve({
      targets: mesh.frontends.size,
      clusters,
      descriptors: clusters + 1,
      slots: slotLines + mesh.splits.size,
      endpoints,
      nameLines: linesOfNames(mesh.clusters.keys()) + linesOfNames(mesh.services.keys()) + mesh.splits.size,
      services: mesh.services.size + 1,
    });
  }

  #putClusters(mesh: Mesh, names: Iterable<string>): number {
    let writes = 0;
    for (const name of names) {
      const cluster = mesh.clusters.get(name);
      if (cluster) writes += this.#clusters.putCluster(cluster);
      faultPoint("publish.cluster");
    }
    return writes;
  }

  #putSplits(mesh: Mesh, names: Iterable<string>, unreferenced: Set<string>): number {
    let writes = 0;
    faultPoint("publish.splits");
    for (const name of names) {
      const split = mesh.splits.get(name);
      const shares = split?.shares.map(({ cluster }) => cluster) ?? [];
      for (const cluster of shares) this.#refer(cluster);
      for (const cluster of this.#splits.get(name) ?? []) this.#unrefer(cluster, unreferenced);
      if (split) {
        this.#splits.set(name, shares);
        writes += this.#clusters.putSplit(split);
      } else {
        this.#splits.delete(name);
        unreferenced.add(splitName(name));
      }
    }
    return writes;
  }

  #putServices(mesh: Mesh, names: Iterable<string>): number {
    let writes = 0;
    for (const name of names) {
      const service: Service | undefined = mesh.services.get(name);
      const id = this.#services.id(name);
      if (service && id === undefined) {
        this.#addService(name);
        writes++;
      }
      // Another live generation counts for the service by this id.
      const isKept = id !== undefined && this.#adopted.kept.services.has(id);
      if (!service && id !== undefined && !isKept && this.#others() !== "live") {
        this.#services.remove(name);
        this.#restingServices.add(id);
        writes++;
      }
      faultPoint("publish.service");
    }
    return writes;
  }

  #addService(name: string): number {
    for (const id of this.#restingServices.expired()) this.#services.recycle(id);
    this.#tables.serviceCounts.reserve(this.#services.bound + 1);
    const id = this.#services.add(name);
    // Another service may have had the id, also under an earlier agent.
    this.#tables.serviceCounts.record(id).fill(0);
    return id;
  }

  #putFrontends(mesh: Mesh, keys: Iterable<string>, unreferenced: Set<string>): number {
    const added = new Map<string, PlacedFrontend>();
    const removed: PlacedFrontend[] = [];
    let writes = 0;
    for (const key of keys) {
      const frontend = mesh.frontends.get(key);
      const placed = this.#frontends.get(key);
      if ((!frontend || frontend.pending) && this.#adopted.kept.frontends.has(key)) continue;
      if (frontend) {
        const word = this.#point(key, frontend, unreferenced);
        writes += word.written;
        if (placed) writes += this.#store(placed.id, word.value);
        else added.set(key, this.#place(frontend, word.value));
      } else if (placed) {
        this.#repoint(key, undefined, unreferenced);
        this.#frontends.delete(key);
        removed.push(placed);
      }
      faultPoint("publish.target");
    }
    faultPoint("publish.exact");
    this.#addToTables([...added.values()]);
    faultPoint("publish.frontends");
    for (const [key, placed] of added) this.#frontends.set(key, placed);
    this.#removeFromTables(removed);
    return writes + added.size * 2 + removed.length;
  }

  /** The target word of a frontend. Publishes its target first. */
  #point(key: string, frontend: Frontend, unreferenced: Set<string>): { value: bigint; written: number } {
    this.#repoint(key, frontend.target, unreferenced);
    const known = this.#services.id(frontend.service);
    const service = known ?? this.#addService(frontend.service);
    const { value, written } = this.#encode(frontend.target, service);
    return { value, written: written + (known === undefined ? 1 : 0) };
  }

  #encode(target: Target, service: number): { value: bigint; written: number } {
    if (target.kind === "passthrough") return { value: encodeTarget("pass", service, 0), written: 0 };
    if (target.kind === "refuse") {
      return { value: encodeTarget("refuse", service, reasonNumber(target.reason)), written: 0 };
    }
    const name = nameOf(target) ?? "";
    const written = this.#clusters.ensure(name);
    return { value: encodeTarget("cluster", service, this.#clusters.id(name) ?? 0), written };
  }

  #store(id: number, word: bigint): number {
    if (this.#tables.targets.has(id) && this.#tables.targets.long(id) === word) return 0;
    this.#tables.targets.reserve(id + 1);
    this.#tables.targets.publish(id, word);
    return 1;
  }

  /** Gives a new frontend its id and target. `#addToTables` then makes it reachable. */
  #place({ match }: Frontend, word: bigint): PlacedFrontend {
    const placed = { match, id: this.#frontendIds.take() };
    this.#store(placed.id, word);
    return placed;
  }

  #addToTables(added: PlacedFrontend[]): void {
    const blocks = added.filter(({ match }) => match.kind !== "address");
    this.#tables.exact.add(added.filter(({ match }) => match.kind === "address"));
    // First: if the agent is killed between the two, the next one must find the difference.
    if (blocks.length > 0) this.#tables.settings.setFlags({ prefixes: true });
    this.#tables.prefixes.add(blocks);
  }

  #removeFromTables(removed: PlacedFrontend[]): void {
    if (removed.length === 0) return;
    const matches = removed.map(({ match }) => match);
    this.#tables.exact.remove(matches.filter(({ kind }) => kind === "address"));
    this.#tables.prefixes.remove(matches.filter(({ kind }) => kind !== "address"));
    if (this.#tables.prefixes.size === 0) this.#tables.settings.setFlags({ prefixes: false });
    this.#grace.defer(() => {
      for (const { id } of removed) {
        this.#tables.targets.publish(id, 0n);
        this.#frontendIds.give(id);
      }
    });
  }

  #putFallback(mesh: Mesh, unreferenced: Set<string>): number {
    faultPoint("publish.fallback");
    if (mesh.pending?.fallback) return 0;
    this.#repoint("", mesh.fallback, unreferenced);
    const { value, written } = this.#encode(mesh.fallback, 0);
    return written + this.#tables.settings.set("fallback", value);
  }

  /** Clusters that the mesh lacks: refused while something leads to them, otherwise removed. */
  #removeClusters(mesh: Mesh, candidates: string[]): number {
    let writes = 0;
    for (const name of candidates) {
      const split = splitOf(name);
      if (split === undefined ? mesh.clusters.has(name) : mesh.splits.has(split)) continue;
      const id = this.#clusters.id(name);
      if (id !== undefined && this.#adopted.kept.clusters.has(id)) continue;
      writes += this.#references.has(name) ? this.#clusters.putMissing(name) : this.#clusters.remove(name);
      faultPoint("publish.removal");
    }
    return writes;
  }

  /** Records that the frontend `key` (or the fallback, "") now leads to `target`. */
  #repoint(key: string, target: Target | undefined, unreferenced: Set<string>): void {
    const name = target && nameOf(target);
    const old = this.#targets.get(key);
    if (name === old) return;
    if (name !== undefined) {
      this.#refer(name);
      this.#targets.set(key, name);
    } else this.#targets.delete(key);
    if (old !== undefined) this.#unrefer(old, unreferenced);
  }

  #refer(name: string): void {
    this.#references.set(name, (this.#references.get(name) ?? 0) + 1);
  }

  #unrefer(name: string, unreferenced: Set<string>): void {
    const left = (this.#references.get(name) ?? 1) - 1;
    if (left > 0) {
      this.#references.set(name, left);
      return;
    }
    this.#references.delete(name);
    unreferenced.add(name);
  }
}

/** The keys of `now`, and the keys that only `before` has. */
function union(now: ReadonlyMap<string, unknown>, before: Iterable<string>): string[] {
  const all = [...now.keys()];
  for (const name of before) if (!now.has(name)) all.push(name);
  return all;
}

/** The name in the cluster table for a target. */
function nameOf(target: Target): string | undefined {
  if (target.kind === "cluster") return target.cluster;
  return target.kind === "split" ? splitName(target.split) : undefined;
}
