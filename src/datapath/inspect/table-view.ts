/** The pinned tables' records with names instead of ids. Names are read at the first use. */
import { monotonic } from "../../kernel/clock.ts";
import { formatMatch } from "../../mesh/frontend.ts";
import { REASONS, type Reason } from "../../mesh/model.ts";
import { splitOf } from "../mesh-tables/cluster-table.ts";
import {
  chainOf,
  type Descriptor,
  readDescriptor,
  readSlots,
  SLOT_REFUSE,
} from "../mesh-tables/descriptor.ts";
import { readEndpoint } from "../mesh-tables/endpoint-table.ts";
import { decodeTarget, reasonName } from "../mesh-tables/target.ts";
import type { ChunkedTable } from "../tables/chunked-table.ts";
import * as layout from "../tables/layout.gen.ts";
import { nameOf, readNames } from "../tables/names.ts";
import type { Tables } from "../tables/tables.ts";
import type { ClusterState, EndpointState, FrontendState, ServiceCounters, Summary } from "./state.ts";

/** Does not own the tables. */
export class TableView {
  readonly tables: Tables;
  readonly #now = monotonic();
  #readClusterNames: Map<number, string> | undefined;
  #readServiceNames: Map<number, string> | undefined;

  constructor(tables: Tables) {
    this.tables = tables;
  }

  get #clusterNames(): Map<number, string> {
    this.#readClusterNames ??= idsToNames(readNames(this.tables.clusterNames, this.tables.nameLines));
    return this.#readClusterNames;
  }

  get #serviceNames(): Map<number, string> {
    this.#readServiceNames ??= idsToNames(readNames(this.tables.serviceNames, this.tables.nameLines));
    return this.#readServiceNames;
  }

  clusterName(id: number): string {
    return this.#clusterNames.get(id) ?? `cluster ${id}`;
  }

  serviceName(id: number): string {
    return this.#serviceNames.get(id) ?? "";
  }

  /** Counters by service; the first are those of connections to no service. */
  services(): ServiceCounters[] {
    return countersOf(this.tables.serviceCounts, this.#serviceNames);
  }

  frontends(): FrontendState[] {
    const { exact, prefixes, targets } = this.tables;
    return [...exact.list(), ...prefixes.list()].map(({ match, id }) =>
      this.frontend(formatMatch(match), targets.long(id)),
    );
  }

  /** Decodes a target word. */
  frontend(match: string, word: bigint): FrontendState {
    const { action, service, value } = decodeTarget(word);
    const base = { match, service: this.serviceName(service) };
    if (action === "refuse") return { ...base, action, target: reasonName(value) };
    if (action !== "cluster") return { ...base, action: "pass", target: "" };
    const name = this.clusterName(value);
    const split = splitOf(name);
    return split === undefined
      ? { ...base, action: "cluster", target: name }
      : { ...base, action: "split", target: split };
  }

  clusters(): ClusterState[] {
    return [...this.#clusterNames.keys()]
      .map((id) => this.cluster(id))
      .filter((state) => state !== undefined);
  }

  /** The published cluster of an id; undefined without one. */
  cluster(id: number): ClusterState | undefined {
    const { clusters, clusterLoads } = this.tables;
    const descriptor = this.descriptor(id);
    if (!descriptor || !clusters.has(id)) return undefined;
    const name = this.clusterName(id);
    const fallbacks = this.#fallbacks(id, descriptor);
    return {
      name: splitOf(name) ?? name,
      kind: descriptor.kind,
      policy: descriptor.policy,
      ...(descriptor.kind === "refuse" ? { reason: reasonName(descriptor.reason) } : {}),
      ...(descriptor.kind === "port" ? { port: descriptor.port } : {}),
      maxConnections: descriptor.maxConnections,
      live: clusterLoads.count(id, layout.cluster_load.fields.live.offset),
      endpoints: descriptor.kind === "endpoints" ? this.#endpoints(id, descriptor) : [],
      ...(fallbacks.length > 0 ? { fallbacks } : {}),
      shares: descriptor.kind === "split" ? this.#shares(descriptor) : [],
    };
  }

  /** All ejections ever count, those of removed clusters too. Only clusters that eject now are looked at closely. */
  ejections(): NonNullable<Summary["ejections"]> {
    const { clusterLoads, clusterNames, nameLines, settings } = this.tables;
    const { ejections, ejected_until_ns: until } = layout.cluster_load.fields;
    const now = Number(this.#now);
    const state: ReturnType<TableView["ejections"]> = {
      now: [],
      ever: 0,
      stale: settings.isStale(this.#now),
    };
    for (const { first, count, words, step } of clusterLoads.spans()) {
      for (let i = 0; i < count; i++) {
        state.ever += longOf(words, i * step + (ejections.offset >> 2));
        if (longOf(words, i * step + (until.offset >> 2)) <= now) continue;
        const id = first + i;
        const cluster = nameOf(clusterNames, nameLines, id);
        const descriptor = this.descriptor(id);
        if (cluster === undefined || descriptor?.kind !== "endpoints" || !this.#leavesOut(id, descriptor))
          continue;
        const all = [this.#endpoints(id, descriptor), ...this.#fallbacks(id, descriptor)].flat();
        for (const { address, port, ejectedFor: forMs } of all) {
          if (forMs > 0) state.now.push({ cluster, address, port, forMs });
        }
      }
    }
    return state;
  }

  descriptor(cluster: number): Descriptor | undefined {
    const { clusters, descriptors } = this.tables;
    const id = clusters.has(cluster) ? Number(clusters.long(cluster)) : 0;
    return id ? readDescriptor(descriptors, id) : undefined;
  }

  /** Like leaves_out() in bpf/connect/ejection.h: a cluster without outlier detection ejects only while the tables are stale. */
  #leavesOut(id: number, { ejection }: Descriptor): boolean {
    const { clusterLoads, settings } = this.tables;
    if (!clusterLoads.has(id) || (ejection.after === 0 && !settings.isStale(this.#now))) return false;
    return this.#left(clusterLoads.long(id, layout.cluster_load.fields.ejected_until_ns.offset)) > 0;
  }

  #fallbacks(id: number, descriptor: Descriptor): EndpointState[][] {
    const { descriptors } = this.tables;
    return chainOf(descriptors, descriptor.fallback).map((each) =>
      this.#endpoints(id, readDescriptor(descriptors, each)),
    );
  }

  #endpoints(id: number, descriptor: Descriptor): EndpointState[] {
    const leavesOut = this.#leavesOut(id, descriptor);
    return [descriptor.v4, descriptor.v6].flatMap((run) => {
      const times = occurrences(readSlots(this.tables.slots, run));
      const states = [...times].map(([endpoint, count]) => ({
        ...readEndpoint(this.tables, endpoint),
        share: count / run.count,
        ...this.#load(endpoint, leavesOut),
      }));
      return states.sort((a, b) =>
        a.address < b.address ? -1 : a.address > b.address ? 1 : a.port - b.port,
      );
    });
  }

  #load(endpoint: number, leavesOut: boolean): Omit<EndpointState, "address" | "port" | "share"> {
    const { endpointLoads } = this.tables;
    const { fields } = layout.endpoint_load;
    return {
      live: endpointLoads.count(endpoint, fields.live.offset),
      failed: Number(endpointLoads.long(endpoint, fields.failed.offset)),
      failures: endpointLoads.word(endpoint, fields.failures.offset),
      ejectedFor: leavesOut ? this.#left(endpointLoads.long(endpoint, fields.ejected_until_ns.offset)) : 0,
    };
  }

  /** Milliseconds until a time; 0 when it has passed. */
  #left(until: bigint): number {
    return Math.max(0, Number((until - this.#now) / 1_000_000n));
  }

  #shares(descriptor: Descriptor): { cluster: string; share: number }[] {
    const times = occurrences(readSlots(this.tables.slots, descriptor.v4));
    return [...times].map(([id, count]) => ({
      cluster: id >= SLOT_REFUSE ? reasonName(id - SLOT_REFUSE) : this.clusterName(id),
      share: count / descriptor.v4.count,
    }));
  }
}

/** Counters by service; the first are those of connections to no service. */
export function countersOf(counts: ChunkedTable, names: Map<number, string>): ServiceCounters[] {
  return [[0, ""] as const, ...names].map(([id, name]) => counters(counts, id, name));
}

function counters(counts: ChunkedTable, id: number, service: string): ServiceCounters {
  const { fields } = layout.service_counters;
  const at = (offset: number) => (counts.has(id) ? Number(counts.long(id, offset)) : 0);
  const refused: Partial<Record<Reason, number>> = {};
  REASONS.forEach((reason, i) => {
    const count = at(fields.refused.offset + i * 8);
    if (count > 0) refused[reason] = count;
  });
  return {
    service,
    redirected: at(fields.redirected.offset),
    passed: at(fields.passed.offset),
    wouldRedirect: at(fields.would_redirect.offset),
    wouldRefuse: at(fields.would_refuse.offset),
    refused,
    failed: at(fields.failed.offset),
  };
}

function occurrences(slots: Uint32Array): Map<number, number> {
  const times = new Map<number, number>();
  for (const slot of slots) times.set(slot, (times.get(slot) ?? 0) + 1);
  return times;
}

/** Two words as a number, exact up to 2^53. */
function longOf(words: Uint32Array, at: number): number {
  return (words[at + 1] ?? 0) * 2 ** 32 + (words[at] ?? 0);
}

/** A table of names, turned round. */
export function idsToNames(names: Map<string, number>): Map<number, string> {
  return new Map([...names].map(([name, id]) => [id, name]));
}
