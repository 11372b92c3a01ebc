/**
 * Clusters and splits in the kernel. A name keeps its id. Its content is an immutable descriptor with slots, which one store
 * replaces.
 */
import type { EndpointList } from "../../mesh/endpoint-list.ts";
import type { Cluster, Split } from "../../mesh/model.ts";
import { faultPoint } from "../../runtime/fault.ts";
import type { ChunkedTable } from "../tables/chunked-table.ts";
import type { DeferredFree } from "../tables/deferred-free.ts";
import { ExtentAllocator } from "../tables/extent-allocator.ts";
import { Ids } from "../tables/ids.ts";
import * as layout from "../tables/layout.gen.ts";
import { type NameLines, NameSpace } from "../tables/names.ts";
import { Quarantine, SOCKET_REST_MS } from "../tables/quarantine.ts";
import type { MayReuse, Tables } from "../tables/tables.ts";
import { type Compiled, compileCluster, compileMissing, compileSplit } from "./cluster-compiler.ts";
import {
  chainOf,
  hasDigest,
  linesOf,
  type Run,
  readDescriptor,
  readFallback,
  readRuns,
  readSlots,
  runsOf,
  SLOTS_PER_LINE,
  writeDescriptor,
} from "./descriptor.ts";
import { EndpointTable } from "./endpoint-table.ts";
import type { Members } from "./slots.ts";
import { reasonNumber } from "./target.ts";
import type { Tunnelled } from "./tunnel-targets.ts";
import type { Selection } from "./weights.ts";

const LIVE = layout.cluster_load.fields.live.offset;
const NO_RUN: Run = { firstLine: 0, count: 0 };
/** The prefix of splits, whose names are separate from the clusters'. */
const SPLIT_PREFIX = "split:";

export class ClusterTable {
  readonly #clusters: ChunkedTable;
  readonly #descriptors: ChunkedTable;
  readonly #slots: ChunkedTable;
  readonly #loads: ChunkedTable;
  readonly #names: NameSpace;
  readonly #endpoints: EndpointTable;
  readonly #grace: DeferredFree;
  readonly #descriptorIds: Ids;
  readonly #lines: ExtentAllocator;
  readonly #resting: Quarantine;
  /** Unpublished clusters by name, which wait for the end of readers. */
  readonly #leaving = new Set<string>();
  readonly #alone: () => boolean;
  readonly #serviceId: (name: string) => number;

  /**
   * `alone`: no other generation is kept that may use the ids, so they can be reused. `serviceId` returns the id of a
   * service and creates it if necessary.
   */
  constructor(
    tables: Tables,
    lines: NameLines,
    grace: DeferredFree,
    alone: () => boolean,
    serviceId: (name: string) => number,
    mayReuse: MayReuse = () => true,
  ) {
    this.#serviceId = serviceId;
    this.#clusters = tables.clusters;
    this.#descriptors = tables.descriptors;
    this.#slots = tables.slots;
    this.#loads = tables.clusterLoads;
    this.#grace = grace;
    const counted = countedOn(tables.clusterLoads, LIVE);
    this.#names = new NameSpace(tables.clusterNames, lines, 0, counted, (id) => mayReuse("cluster", id));
    this.#alone = alone;
    this.#unpublishNameless();
    const used = usedRecords(tables);
    this.#descriptorIds = new Ids(1, used.descriptors);
    this.#lines = new ExtentAllocator(used.lines);
    this.#endpoints = new EndpointTable(tables, used.endpoints, alone, mayReuse);
    this.#resting = new Quarantine(SOCKET_REST_MS, (id) => this.live(id) <= 0);
    for (const id of this.#names.ids()) counted[id] = 0;
    for (let id = 0; id < counted.length; id++) if (counted[id] !== 0) this.#resting.add(id);
  }

  /** Publishes `cluster` under its name. Returns the records written: 0 if nothing changed. */
  putCluster(cluster: Cluster): number {
    if (cluster.pending && this.#isPublished(cluster.name)) {
      this.#leaving.delete(cluster.name);
      return 0;
    }
    return this.#put(cluster.name, compileCluster(cluster));
  }

  /** Publishes a split. Its clusters may follow later; until then their shares are refused. */
  putSplit(split: Split): number {
    const named = split.shares.reduce((written, { cluster }) => written + this.ensure(cluster), 0);
    return named + this.#put(splitName(split.name), compileSplit(split));
  }

  /** Publishes a missing cluster that a target names. */
  putMissing(name: string): number {
    return this.#put(name, compileMissing());
  }

  /** The id of a published name; publishes an unknown name as missing. */
  id(name: string): number | undefined {
    return this.#names.id(name);
  }

  /** All names with an id, except those that are being removed. */
  names(): string[] {
    return [...this.#names.names()].filter((name) => !this.#leaving.has(name));
  }

  live(id: number): number {
    return this.#loads.count(id, LIVE);
  }

  /** Removes a name that nothing leads to, after a grace period, unless it is published again. */
  remove(name: string): number {
    if (this.#names.id(name) === undefined || this.#leaving.has(name)) return 0;
    // Another generation may use the id, so the name stays.
    if (!this.#alone() && !this.#isPublished(name)) return 0;
    this.#leaving.add(name);
    this.#grace.defer(() => this.#forget(name));
    return 1;
  }

  #forget(name: string): void {
    if (!this.#leaving.delete(name)) return;
    const id = this.#names.id(name);
    if (id === undefined) return;
    if (this.#isPublished(name)) {
      const old = Number(this.#clusters.long(id));
      this.#clusters.publish(id, 0n);
      this.#retire(old);
    }
    // Splits of another generation may use this id.
    if (!this.#alone()) return;
    this.#names.remove(name);
    this.#resting.add(id);
  }

  /** Removes clusters that a kept, unread generation has published and that ended since. */
  #unpublishNameless(): void {
    const named = new Uint8Array(this.#clusters.capacity);
    for (const id of this.#names.ids()) named[id] = 1;
    for (let id = 0; id < named.length; id++) {
      if (named[id] === 0 && this.#clusters.long(id) !== 0n) this.#clusters.publish(id, 0n);
    }
  }

  /** Ensures that a target's name is published, as missing if necessary. */
  ensure(name: string): number {
    this.#leaving.delete(name);
    return this.#isPublished(name) ? 0 : this.putMissing(name);
  }

  #isPublished(name: string): boolean {
    const id = this.#names.id(name);
    return id !== undefined && this.#clusters.has(id) && this.#clusters.long(id) !== 0n;
  }

  #put(name: string, compiled: Compiled): number {
    this.#leaving.delete(name);
    const id = this.#names.id(name) ?? this.#add(name);
    // The name may be older than these tables.
    this.#clusters.reserve(id + 1);
    const old = Number(this.#clusters.long(id));
    if (old && hasDigest(this.#descriptors, old, compiled.digest)) return 0;
    const { descriptor, written } = this.#write(compiled, id);
    faultPoint("publish.descriptor");
    this.#clusters.publish(id, BigInt(descriptor));
    if (old) this.#retire(old);
    return written + 1;
  }

  #add(name: string): number {
    for (const id of this.#resting.expired()) this.#names.recycle(id);
    // Make room first: a name without a record would fail at each attempt.
    this.#clusters.reserve(this.#names.bound + 1);
    this.#loads.reserve(this.#names.bound + 1);
    return this.#names.add(name);
  }

  /** Writes slots and descriptor in unpublished records. */
  #write(compiled: Compiled, cluster: number): { descriptor: number; written: number } {
    let written = 1;
    const run = (members: Members) => {
      const slots = compiled.order(members);
      const placed = this.#writeRun(slots);
      if (compiled.kind === "endpoints") {
        for (const endpoint of slots) this.#endpoints.hold(endpoint);
        // Members with a small weight may have no slot in a hash table.
        for (const endpoint of members.ids) this.#endpoints.restUnheld(endpoint);
      }
      written += linesOf(placed);
      return placed;
    };
    const { transports } = compiled;
    const service = transports.length > 0 ? this.#serviceId(compiled.service) : 0;
    const through = (list: EndpointList, place: number): Tunnelled | undefined => {
      const transport = transports[list.transport(place) - 1];
      return transport && { transport, cluster, service };
    };
    const endpoints = ({ lists, places, weights }: Selection): Members => {
      const ids = new Uint32Array(places.length);
      lists.forEach((list, i) => {
        const placed = this.#endpoints.place(list, places[i] ?? 0, through(list, places[i] ?? 0));
        if (placed.written) written++;
        ids[i] = placed.id;
      });
      return {
        ids,
        weights,
        nameOf: (i) => `${lists[i]?.address(places[i] ?? 0)}:${lists[i]?.port(places[i] ?? 0)}`,
      };
    };
    const shares = ({ shares: parts }: Compiled): Members => ({
      ids: Uint32Array.from(parts, ({ cluster }) => this.#names.id(cluster) ?? this.#add(cluster)),
      weights: parts.map(({ weight }) => weight),
      nameOf: (i) => parts[i]?.cluster ?? "",
    });
    const v4 = run(compiled.kind === "split" ? shares(compiled) : endpoints(compiled.v4));
    const v6 = run(endpoints(compiled.v6));
    const reason = reasonNumber(compiled.reason);
    const describe = (runs: { v4: Run; v6: Run }, fallback: number) => {
      const id = this.#descriptorIds.take();
      this.#descriptors.reserve(this.#descriptorIds.bound);
      writeDescriptor(this.#descriptors, id, { ...compiled, reason, ...runs, fallback });
      return id;
    };
    // The last descriptor first, because each refers to the next.
    let fallback = 0;
    for (const each of compiled.fallbacks.toReversed()) {
      fallback = describe({ v4: run(endpoints(each.v4)), v6: run(endpoints(each.v6)) }, fallback);
      written++;
    }
    return { descriptor: describe({ v4, v6 }, fallback), written };
  }

  #writeRun(slots: Uint32Array): Run {
    if (slots.length === 0) return NO_RUN;
    const run = { firstLine: 0, count: slots.length };
    run.firstLine = this.#lines.take(linesOf(run));
    this.#slots.reserve(this.#lines.bound);
    for (let i = 0; i < slots.length; i++) {
      this.#slots.setWord(
        run.firstLine + Math.floor(i / SLOTS_PER_LINE),
        (i % SLOTS_PER_LINE) * 4,
        slots[i] ?? 0,
      );
    }
    return run;
  }

  /** Frees an unpublished descriptor and its slots after a grace period. */
  #retire(first: number): void {
    const chain = chainOf(this.#descriptors, first).map((id) => ({
      id,
      descriptor: readDescriptor(this.#descriptors, id),
    }));
    this.#grace.defer(() => {
      for (const { id, descriptor } of chain) {
        const runs = runsOf(descriptor);
        if (descriptor.kind === "endpoints")
          this.#eachSlot(runs, (endpoint) => this.#endpoints.drop(endpoint));
        for (const run of runs) this.#lines.give(run.firstLine, linesOf(run));
        this.#descriptorIds.give(id);
      }
    });
  }

  #eachSlot(runs: Run[], visit: (id: number) => void): void {
    for (const run of runs) for (const slot of readSlots(this.#slots, run)) visit(slot);
  }
}

export function splitName(split: string): string {
  return SPLIT_PREFIX + split;
}

/** The name of a split; undefined for a cluster's name. */
export function splitOf(name: string): string | undefined {
  return name.startsWith(SPLIT_PREFIX) ? name.slice(SPLIT_PREFIX.length) : undefined;
}

/** The records that published clusters occupy: marks by id, and the number of slots of each endpoint. */
function usedRecords(tables: Tables): { descriptors: Uint8Array; lines: Uint8Array; endpoints: Uint32Array } {
  const descriptors = new Uint8Array(tables.descriptors.capacity);
  const lines = new Uint8Array(tables.slots.capacity);
  const endpoints = new Uint32Array(tables.endpoints.capacity);
  for (let cluster = 0; cluster < tables.clusters.capacity; cluster++) {
    const first = Number(tables.clusters.long(cluster));
    if (!first) continue;
    for (let id = first; id !== 0 && !descriptors[id]; id = readFallback(tables.descriptors, id)) {
      descriptors[id] = 1;
      const { kind, runs } = readRuns(tables.descriptors, id);
      for (const run of runs) {
        lines.fill(1, run.firstLine, run.firstLine + linesOf(run));
        if (kind !== "endpoints") continue;
        const slots = readSlots(tables.slots, run);
        for (let i = 0; i < slots.length; i++) {
          const endpoint = slots[i] ?? 0;
          endpoints[endpoint] = (endpoints[endpoint] ?? 0) + 1;
        }
      }
    }
  }
  return { descriptors, lines, endpoints };
}

/** Marks the ids with live connections; `live` is the offset of the count in the record. */
function countedOn(loads: ChunkedTable, live: number): Uint8Array {
  const marks = new Uint8Array(loads.capacity);
  for (const { first, count, words, step } of loads.spans()) {
    for (let i = 0; i < count; i++) {
      const at = i * step + (live >> 2);
      if (words[at] !== 0 || words[at + 1] !== 0) marks[first + i] = 1;
    }
  }
  return marks;
}
