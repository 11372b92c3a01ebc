/**
 * How endpoints behind the tunnel are, for the kernel's balancing. An app's connect() ends at the tunnel and says nothing
 * about the endpoint, so the tunnel records here how its own connection went, by the rules of bpf/include/eject.h: failures
 * in a row eject the endpoint, within the share of its cluster that may be ejected. Needs no agent.
 */
import type { Ejection } from "../mesh/model.ts";
import { chainOf, readDescriptor, SLOT_REFUSE, SLOTS_PER_LINE } from "./mesh-tables/descriptor.ts";
import { readPeer } from "./mesh-tables/tunnel-targets.ts";
import type { ChunkedTable } from "./tables/chunked-table.ts";
import * as layout from "./tables/layout.gen.ts";
import type { Settings } from "./tables/settings.ts";

/** The tables by which the kernel balances. */
export interface BalanceTables {
  settings: Settings;
  endpoints: ChunkedTable;
  tunnelTargets: ChunkedTable;
  clusters: ChunkedTable;
  descriptors: ChunkedTable;
  slots: ChunkedTable;
  endpointLoads: ChunkedTable;
  clusterLoads: ChunkedTable;
  serviceCounts: ChunkedTable;
}

/** As in eject.h: what ejects while nobody keeps the tables up to date, how far apart failures are no row, and the sample. */
const STALE: Ejection = { after: 5, base: 30_000, longest: 300_000, percent: 50, enforcing: 100 };
const ROW_NS = 300_000_000_000n;
const SHARE_SLOTS = 256;
/** Slots that are looked at for another endpoint. */
const ANOTHER_SLOTS = 64;

const LOAD = layout.endpoint_load.fields;
const UNTIL = LOAD.ejected_until_ns.offset;
const FAILURES = LOAD.failures.offset;
const CLUSTER = layout.cluster_load.fields;

/** A connection to the endpoint failed that began at `since`. Times are nanoseconds of CLOCK_MONOTONIC. */
export function recordFailure(tables: BalanceTables, id: number, since: bigint, now: bigint): void {
  const { endpointLoads: loads, clusterLoads } = tables;
  const peer = readPeer(tables, id);
  if (!peer || !loads.has(id)) return;
  countFailure(tables, id);
  // A cluster may be newer than what this process has mapped.
  if (!clusterLoads.has(peer.cluster)) return;
  const [first] = chainOfCluster(tables, peer.cluster);
  if (first === undefined) return;
  const ejection = ejectionOf(tables, first, now);
  const until = loads.long(id, UNTIL);
  const mayEject = () => hasShare(tables, peer.cluster, id, ejection.percent, now);
  if (until > now) {
    // Ejected for another cluster: this one saw the same.
    const noted = clusterLoads.long(peer.cluster, CLUSTER.ejected_until_ns.offset);
    if (ejection.after > 0 && noted < until && mayEject())
      noteEjection(clusterLoads, peer.cluster, until, now);
    return;
  }
  if (since < until) return;
  let row = until;
  if (loads.word(id, FAILURES) === 0 || since > until + ROW_NS) {
    // A row begins.
    if (!loads.replace(id, UNTIL, until, since)) return;
    row = since;
    loads.setWord(id, FAILURES, 0);
  }
  const failures = loads.addToWord(id, FAILURES, 1);
  if (ejection.after === 0 || failures < ejection.after) return;
  if (Math.random() * 100 >= ejection.enforcing || !mayEject()) {
    loads.setWord(id, FAILURES, 0);
    return;
  }
  const ejections = loads.word(id, LOAD.ejections.offset) + 1;
  const end = now + BigInt(Math.min(ejections * ejection.base, ejection.longest)) * 1_000_000n;
  if (!loads.replace(id, UNTIL, row, end)) return;
  loads.setWord(id, FAILURES, 0);
  loads.setWord(id, LOAD.ejections.offset, ejections);
  noteEjection(clusterLoads, peer.cluster, end, now);
}

/** Counts a failure and no more: the tables by which the kernel balances may be another version's, these never are. */
export function countFailure(
  tables: Pick<BalanceTables, "endpoints" | "tunnelTargets" | "endpointLoads" | "serviceCounts">,
  id: number,
): void {
  const { endpointLoads, serviceCounts } = tables;
  const peer = readPeer(tables, id);
  if (!peer || !endpointLoads.has(id)) return;
  if (serviceCounts.has(peer.service))
    serviceCounts.add(peer.service, layout.service_counters.fields.failed.offset, 1);
  endpointLoads.add(id, LOAD.failed.offset, 1);
}

/** A connection to the endpoint came about that began at `since`. */
export function recordSuccess({ endpointLoads: loads }: BalanceTables, id: number, since: bigint): void {
  if (!loads.has(id)) return;
  if (loads.word(id, FAILURES) === 0 && loads.word(id, LOAD.ejections.offset) === 0) return;
  if (since < loads.long(id, UNTIL)) return;
  loads.setWord(id, FAILURES, 0);
  loads.setWord(id, LOAD.ejections.offset, 0);
}

/**
 * Another endpoint of the same cluster that is reached through the tunnel and that is not ejected, by weight; of the next
 * priority where the first has none. Undefined when none is found.
 */
export function anotherEndpoint(tables: BalanceTables, id: number, now: bigint): number | undefined {
  const peer = readPeer(tables, id);
  if (!peer) return undefined;
  for (const descriptor of chainOfCluster(tables, peer.cluster)) {
    const { v4 } = readDescriptor(tables.descriptors, descriptor);
    const start = Math.floor(Math.random() * v4.count);
    for (let i = 0; i < Math.min(v4.count, ANOTHER_SLOTS); i++) {
      const slot = slotAt(tables.slots, v4.firstLine, (start + i) % v4.count);
      if (slot === id || slot >= SLOT_REFUSE || isEjected(tables, slot, now)) continue;
      // Tables that another version has left behind may name an id that means something else by now.
      if (readPeer(tables, slot)?.cluster === peer.cluster) return slot;
    }
  }
  return undefined;
}

/** The descriptors of a cluster of endpoints, by priority. */
function chainOfCluster({ clusters, descriptors }: BalanceTables, cluster: number): number[] {
  const first = clusters.has(cluster) ? Number(clusters.long(cluster)) : 0;
  if (first === 0 || !descriptors.has(first)) return [];
  return readDescriptor(descriptors, first).kind === "endpoints" ? chainOf(descriptors, first) : [];
}

function ejectionOf({ descriptors, settings }: BalanceTables, descriptor: number, now: bigint): Ejection {
  const { ejection } = readDescriptor(descriptors, descriptor);
  return ejection.after === 0 && settings.isStale(now) ? STALE : ejection;
}

function isEjected({ endpointLoads }: BalanceTables, id: number, now: bigint): boolean {
  return endpointLoads.has(id) && endpointLoads.long(id, UNTIL) > now;
}

/** Whether the share of a cluster, with its further priorities, that is ejected with this endpoint would not be too large. */
function hasShare(tables: BalanceTables, cluster: number, id: number, percent: number, now: bigint): boolean {
  let ejected = 0;
  let seen = 0;
  let others = false;
  for (const descriptor of chainOfCluster(tables, cluster)) {
    const { v4 } = readDescriptor(tables.descriptors, descriptor);
    const step = Math.ceil(v4.count / SHARE_SLOTS);
    for (let at = 0; at < v4.count; at += step) {
      const slot = slotAt(tables.slots, v4.firstLine, at);
      const other = slot !== id && isEjected(tables, slot, now);
      others ||= other;
      if (other || slot === id) ejected += step;
      seen += step;
    }
  }
  return percent > 0 && (!others || ejected * 100 <= percent * seen);
}

function slotAt(slots: ChunkedTable, firstLine: number, index: number): number {
  const line = firstLine + Math.floor(index / SLOTS_PER_LINE);
  return slots.has(line) ? slots.word(line, (index % SLOTS_PER_LINE) * 4) : SLOT_REFUSE;
}

function noteEjection(loads: ChunkedTable, cluster: number, until: bigint, now: bigint): void {
  const at = CLUSTER.ejected_until_ns.offset;
  const noted = loads.long(cluster, at);
  if (noted <= now) loads.setWord(cluster, CLUSTER.ejected.offset, 0);
  loads.addToWord(cluster, CLUSTER.ejected.offset, 1);
  loads.add(cluster, CLUSTER.ejections.offset, 1);
  if (noted < until) loads.publish(cluster, until, at);
}
