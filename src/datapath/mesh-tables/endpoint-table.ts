/**
 * Endpoints in the kernel: one id for each address and port, shared by all clusters and generations. The records themselves
 * show which ids are in use.
 */
import { formatAddress } from "../../mesh/address.ts";
import { ENDPOINT_WORDS, type EndpointList } from "../../mesh/endpoint-list.ts";
import type { ChunkedTable } from "../tables/chunked-table.ts";
import { Ids } from "../tables/ids.ts";
import * as layout from "../tables/layout.gen.ts";
import { Quarantine, SOCKET_REST_MS } from "../tables/quarantine.ts";
import type { MayReuse, Tables } from "../tables/tables.ts";
import { EndpointIndex } from "./endpoint-index.ts";
import { isTarget, readPeer, type Tunnelled, TunnelTargets } from "./tunnel-targets.ts";

const { fields } = layout.endpoint;
const USED = fields.used.offset;
const LIVE = layout.endpoint_load.fields.live.offset;

export interface EndpointAddress {
  address: string;
  port: number;
}

export class EndpointTable {
  readonly #table: ChunkedTable;
  readonly #loads: ChunkedTable;
  readonly #ids: Ids;
  /** Absent until an endpoint is looked up: a start without changes needs none. */
  #index: EndpointIndex | undefined;
  /** Endpoints behind the tunnel; absent until one is looked up or removed. */
  #targets: TunnelTargets | undefined;
  readonly #tables: Tables;
  /** The number of published slots of each id. */
  #uses: Uint32Array;
  readonly #resting: Quarantine;
  readonly #alone: () => boolean;
  readonly #mayReuse: MayReuse;

  /**
   * `uses` has the number of slots by endpoint id; this object then owns it. `alone`: no other generation's slots use the
   * ids. `mayReuse` returns true when nothing else uses an id.
   */
  constructor(tables: Tables, uses: Uint32Array, alone: () => boolean, mayReuse: MayReuse = () => true) {
    const table = tables.endpoints;
    this.#tables = tables;
    this.#table = table;
    this.#loads = tables.endpointLoads;
    this.#alone = alone;
    this.#mayReuse = mayReuse;
    this.#uses = uses;
    this.#resting = new Quarantine(SOCKET_REST_MS, (id) => this.live(id) <= 0);
    const given = new Uint8Array(table.capacity);
    let targets = false;
    eachUsed(table, (id) => {
      given[id] = 1;
      targets ||= isTarget(tables, id);
      if (!uses[id]) this.#resting.add(id);
    });
    this.#ids = new Ids(0, given);
    // Targets outlive the tables of one version: their port stays closed, also when no endpoint of this one needs it.
    if (targets) tables.settings.setFlags({ tunnel: true });
  }

  /**
   * The id of an endpoint of `list`; creates it if necessary. `through` is its tunnel target, if any. Its record is complete
   * when this returns.
   */
  place(list: EndpointList, index: number, through?: Tunnelled): { id: number; written: boolean } {
    // Close the tunnel's port to direct connections before the first endpoint uses it. It stays closed, because connections
    // may remain.
    if (through) this.#tables.settings.setFlags({ tunnel: true });
    const known = through ? this.#tunnelled().find(list, index, through) : this.#plain().find(list, index);
    if (known !== undefined) {
      this.#resting.remove(known);
      return { id: known, written: false };
    }
    this.#recycle();
    const id = this.#ids.take((each) => this.#mayReuse("endpoint", each));
    this.#table.reserve(this.#ids.bound);
    this.#loads.reserve(this.#ids.bound);
    if (through) {
      const local = this.#tunnelled().add(id, list, index, through);
      writeEndpoint(this.#table, id, local, 0);
    } else {
      writeEndpoint(this.#table, id, list, index);
      this.#plain().add(id);
    }
    this.#setUses(id, 0);
    return { id, written: true };
  }

  #plain(): EndpointIndex {
    this.#index ??= indexOf(this.#tables);
    return this.#index;
  }

  #tunnelled(): TunnelTargets {
    this.#targets ??= new TunnelTargets(this.#tables);
    return this.#targets;
  }

  /** Call it before a slot with `id` is published. */
  hold(id: number): void {
    this.#setUses(id, (this.#uses[id] ?? 0) + 1);
  }

  /** Call it when no reader uses a slot with `id`. */
  drop(id: number): void {
    const uses = (this.#uses[id] ?? 1) - 1;
    this.#uses[id] = uses;
    if (uses === 0) this.#resting.add(id);
  }

  /** Frees the id of an endpoint that got no slot. */
  restUnheld(id: number): void {
    if (this.#uses[id] === 0) this.#resting.add(id);
  }

  /** Live connections to it: sockets from connect() to their release. */
  live(id: number): number {
    return this.#loads.count(id, LIVE);
  }

  #recycle(): void {
    if (!this.#alone()) return;
    for (const id of this.#resting.expired()) {
      if (!this.#tunnelled().remove(id)) this.#index?.remove(id);
      this.#table.setWord(id, USED, 0);
      this.#ids.give(id);
    }
  }

  #setUses(id: number, count: number): void {
    if (id >= this.#uses.length) {
      const larger = new Uint32Array(Math.max(this.#uses.length * 2, id + 1));
      larger.set(this.#uses);
      this.#uses = larger;
    }
    this.#uses[id] = count;
  }
}

/** All ids in use. */
function eachUsed(table: ChunkedTable, visit: (id: number) => void): void {
  for (const { first, count, words, step } of table.spans()) {
    for (let i = 0; i < count; i++) if (words[i * step + (USED >> 2)] !== 0) visit(first + i);
  }
}

/** Endpoints that are reached directly. */
function indexOf(tables: Tables): EndpointIndex {
  const index = new EndpointIndex(tables.endpoints, tables.endpoints.capacity);
  eachUsed(tables.endpoints, (id) => {
    if (readPeer(tables, id) === undefined) index.add(id);
  });
  return index;
}

/** The address of the endpoint; for a tunnelled one, the peer's. */
export function readEndpoint(
  tables: Pick<Tables, "endpoints" | "tunnelTargets">,
  id: number,
): EndpointAddress {
  const peer = readPeer(tables, id);
  if (peer) return { address: peer.address, port: peer.port };
  const table = tables.endpoints;
  const record = table.record(id);
  const port = fields.port.offset;
  return {
    address: formatAddress(record.subarray(fields.address.offset, fields.address.offset + 16)),
    port: ((record[port] ?? 0) << 8) | (record[port + 1] ?? 0),
  };
}

/** A buffer for one record, which is copied as a whole: a start writes 100,000. */
const draft = new DataView(new ArrayBuffer(layout.endpoint.size));
const draftBytes = new Uint8Array(draft.buffer);
const draftWords = new Uint32Array(draft.buffer);

function writeEndpoint(table: ChunkedTable, id: number, list: EndpointList, index: number): void {
  const first = index * ENDPOINT_WORDS;
  for (let word = 0; word < 4; word++) {
    draftWords[(fields.address.offset >> 2) + word] = list.words[first + word] ?? 0;
  }
  draft.setUint16(fields.port.offset, list.port(index));
  draft.setUint8(fields.is_v4.offset, list.isV4(index) ? 1 : 0);
  draftWords[USED >> 2] = 1;
  table.write(id, draftBytes);
}
