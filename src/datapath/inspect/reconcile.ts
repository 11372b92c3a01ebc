/**
 * Compares live counts with the kernel's list of sockets. A connection is counted from connect() to sock_release. A closed
 * socket that an app still holds is therefore counted but not in the list, so a count above the list is an error only if
 * sock_release was detached for some time. A count below the list always is.
 */
import { CONNECTED, listSockets, type SocketBatch } from "../../kernel/net/sockets.ts";
import type { ChunkedTable } from "../tables/chunked-table.ts";
import * as layout from "../tables/layout.gen.ts";
import type { Tables } from "../tables/tables.ts";

const STATE = layout.socket_state.fields;
const { SOCKET_COUNTED } = layout.enums.socket_flag;

export interface Reconciliation {
  /** Counted sockets in the list. */
  sockets: number;
  /** Connections added to the counts of endpoints and of clusters. */
  raised: { endpoints: number; clusters: number };
  /** Connections removed from the counts. */
  lowered: { endpoints: number; clusters: number };
  milliseconds: number;
}

/**
 * Corrects the live counts of endpoints and clusters. Connections begin and end meanwhile, so it adds only sockets that
 * both reads found, and removes only counts that neither read explains. Other work runs between the batches.
 * @param lower sock_release was detached for some time and is attached now, and no other network namespace is governed
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
  // Between the two reads, when every socket that both find is alive and counted.
  for (const side of sides) side.readMiddle();
  let sockets = first.size;
  await eachCounted(tables, (socket) => {
    const isSame = first.get(socket.cookie) === socket.value64(STATE.since_ns.offset);
    // The list is read in parts and may have a socket twice; count it once.
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

/** Describes a correction; undefined when nothing was wrong. */
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

/** The counts of endpoints, or of clusters. */
class Side {
  readonly #loads: ChunkedTable;
  readonly #live: number;
  readonly #id: number;
  /** By id: sockets that both reads found, and sockets that at least one found. */
  readonly #sure: Uint32Array;
  readonly #seen: Uint32Array;
  /** By id: the count between the two reads, and the lowest count. */
  readonly #middle: Float64Array;
  readonly #lowest: Float64Array;

  /** `live` and `id` are offsets: of the count in its record, and of the id in the socket's storage. */
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

  /** The first read found a socket. */
  seen(socket: SocketBatch): void {
    const id = socket.value32(this.#id);
    if (id < this.#seen.length) this.#seen[id] = (this.#seen[id] ?? 0) + 1;
  }

  /** The second read found the same socket with the same connection. */
  sure(socket: SocketBatch): void {
    const id = socket.value32(this.#id);
    if (id < this.#sure.length) this.#sure[id] = (this.#sure[id] ?? 0) + 1;
  }

  /** Returns the number of added connections. */
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
      // Without an inode no process holds the socket: sock_release ran, or was missed.
      if (!socket.hasValue || socket.inode === 0) continue;
      if ((socket.value16(STATE.flags.offset) & SOCKET_COUNTED) !== 0) visit(socket);
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
}
