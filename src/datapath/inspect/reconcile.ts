/**
 * Live counts against the sockets that there are. A count goes from connect() to sock_release, so a closed socket that
 * an app still holds is counted and not in the kernel's list: what is counted beyond the list is an error only when
 * sock_release was detached for a while. What is in the list and not counted always is one.
 */
import { CONNECTED, listSockets, type SocketBatch } from "../../kernel/net/sockets.ts";
import type { ChunkedTable } from "../tables/chunked-table.ts";
import * as layout from "../tables/layout.gen.ts";
import type { Tables } from "../tables/tables.ts";

const STATE = layout.socket_state.fields;
const { SOCKET_COUNTED } = layout.enums.socket_flag;

export interface Reconciliation {
  /** Counted sockets that were found. */
  sockets: number;
  /** Connections that were missing in an endpoint's count and in a cluster's, and were added. */
  raised: { endpoints: number; clusters: number };
  /** Connections that were counted and are gone. */
  lowered: { endpoints: number; clusters: number };
  milliseconds: number;
}

/**
 * Corrects the live counts of endpoints and clusters. Connections begin and end meanwhile: only what was there through
 * all of it is raised, and only what no look at all found is lowered. Others work between the batches.
 * @param lower sock_release was not attached for a while and is now, and no other network namespace is governed
 * Rejects with KernelError when the kernel can't list its sockets; nothing is corrected then.
 */
export async function reconcileLive(tables: Tables, lower: boolean): Promise<Reconciliation> {
  const start = performance.now();
  const sides = [
    new Side(tables.endpointLoads, layout.endpoint_load.fields.live.offset, STATE.endpoint.offset),
    new Side(tables.clusterLoads, layout.cluster_load.fields.live.offset, STATE.cluster.offset),
  ] as const;
  const first = new Map<bigint, bigint>();
  for (const side of sides) side.read();
  await eachCounted(tables, (socket) => {
    first.set(socket.cookie, socket.value64(STATE.since_ns.offset));
    for (const side of sides) side.seen(socket);
  });
  // In the middle, when whatever both looks find is alive and counted.
  for (const side of sides) side.readMiddle();
  let sockets = first.size;
  await eachCounted(tables, (socket) => {
    const isSame = first.get(socket.cookie) === socket.value64(STATE.since_ns.offset);
    // A list that is taken in parts may name a socket twice; one that is sure is so once.
    if (isSame) first.delete(socket.cookie);
    else sockets++;
    for (const side of sides) isSame ? side.sure(socket) : side.seen(socket);
  });
  for (const side of sides) side.read();
  const [endpoints, clusters] = sides;
  return {
    sockets,
    raised: { endpoints: endpoints.raise(), clusters: clusters.raise() },
    lowered: lower
      ? { endpoints: endpoints.lower(), clusters: clusters.lower() }
      : { endpoints: 0, clusters: 0 },
    milliseconds: performance.now() - start,
  };
}

/** One in words; undefined when nothing was wrong. */
export function formatReconciliation({ raised, lowered, sockets }: Reconciliation): string | undefined {
  const parts = [
    ...(raised.endpoints + raised.clusters > 0 ? [`${largest(raised)} were not counted`] : []),
    ...(lowered.endpoints + lowered.clusters > 0 ? [`${largest(lowered)} were counted and are gone`] : []),
  ];
  if (parts.length === 0) return undefined;
  return `live counts corrected against ${sockets} sockets: ${parts.join(", ")}`;
}

function largest({ endpoints, clusters }: { endpoints: number; clusters: number }): string {
  const connections = Math.max(endpoints, clusters);
  return `${connections} ${connections === 1 ? "connection" : "connections"}`;
}

/** The counts of one kind of thing. */
class Side {
  readonly #loads: ChunkedTable;
  readonly #live: number;
  readonly #id: number;
  /** By id: sockets that were found in both looks, and in one at least. */
  readonly #sure: Uint32Array;
  readonly #seen: Uint32Array;
  /** By id: the count between the looks, and the lowest of all that were read. */
  readonly #middle: Float64Array;
  readonly #lowest: Float64Array;

  /** `live` and `id` are offsets: of the count in its record, of the id in what a socket carries. */
  constructor(loads: ChunkedTable, live: number, id: number) {
    this.#loads = loads;
    this.#live = live;
    this.#id = id;
    this.#sure = new Uint32Array(loads.capacity);
    this.#seen = new Uint32Array(loads.capacity);
    this.#middle = new Float64Array(loads.capacity);
    this.#lowest = new Float64Array(loads.capacity).fill(Number.POSITIVE_INFINITY);
  }

  read(): void {
    for (let id = 0; id < this.#lowest.length; id++) {
      const live = this.#loads.count(id, this.#live);
      if (live < (this.#lowest[id] ?? 0)) this.#lowest[id] = live;
    }
  }

  readMiddle(): void {
    for (let id = 0; id < this.#middle.length; id++) {
      this.#middle[id] = this.#loads.count(id, this.#live);
    }
    this.read();
  }

  /** A socket that was found for the first time. */
  seen(socket: SocketBatch): void {
    const id = socket.value32(this.#id);
    if (id < this.#seen.length) this.#seen[id] = (this.#seen[id] ?? 0) + 1;
  }

  /** A socket that was found before, with the same connection. */
  sure(socket: SocketBatch): void {
    const id = socket.value32(this.#id);
    if (id < this.#sure.length) this.#sure[id] = (this.#sure[id] ?? 0) + 1;
  }

  /** Gives what was added in all. */
  raise(): number {
    return this.#correct((id) => Math.max(0, (this.#sure[id] ?? 0) - (this.#middle[id] ?? 0)));
  }

  lower(): number {
    return 0 - this.#correct((id) => -Math.max(0, (this.#lowest[id] ?? 0) - (this.#seen[id] ?? 0)));
  }

  #correct(change: (id: number) => number): number {
    let total = 0;
    for (let id = 0; id < this.#sure.length; id++) {
      const by = change(id);
      if (by === 0) continue;
      this.#loads.add(id, this.#live, by);
      total += by;
    }
    return total;
  }
}

async function eachCounted(tables: Tables, visit: (socket: SocketBatch) => void): Promise<void> {
  for (const batch of listSockets(CONNECTED, tables.maps.sockets)) {
    for (let i = 0; i < batch.count; i++) {
      const socket = batch.at(i);
      // Without an inode no process holds it: sock_release has been, or has passed unseen.
      if (!socket.hasValue || socket.inode === 0) continue;
      if ((socket.value16(STATE.flags.offset) & SOCKET_COUNTED) !== 0) visit(socket);
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
}
