/** Endpoints in the kernel: one id for each address and port, however many clusters use it. */
import { formatAddress, parseAddress, parseV4 } from "../mesh/address.ts";
import type { ChunkedTable } from "./chunked.ts";
import { Ids } from "./ids.ts";
import * as layout from "./layout.gen.ts";
import { Resting, SOCKET_REST_MS } from "./resting.ts";

const { fields } = layout.endpoint;
const LIVE = layout.endpoint_load.fields.live.offset;

export interface EndpointAddress {
  address: string;
  port: number;
}

export class EndpointTable {
  readonly #table: ChunkedTable;
  readonly #loads: ChunkedTable;
  readonly #ids: Ids;
  readonly #byAddress = new Map<EndpointKey, number>();
  /** How many published slots hold the id. */
  readonly #uses: number[] = [];
  readonly #resting: Resting;

  /** `uses` counts, by id, the slots that hold an endpoint already. */
  constructor(table: ChunkedTable, loads: ChunkedTable, uses: Map<number, number>) {
    this.#table = table;
    this.#loads = loads;
    this.#resting = new Resting(SOCKET_REST_MS, (id) => this.live(id) === 0);
    for (const [id, count] of uses) {
      this.#byAddress.set(keyOfRecord(table, id), id);
      this.#uses[id] = count;
    }
    const stray = [...strays(loads, LIVE)].filter((id) => !uses.has(id));
    for (const id of stray) this.#resting.add(id);
    this.#ids = new Ids(0, [...uses.keys(), ...stray]);
  }

  /** The id of an endpoint, new or not. Its record is in place when this returns. */
  place(endpoint: EndpointAddress): { id: number; written: boolean } {
    const key = keyOf(endpoint);
    const known = this.#byAddress.get(key);
    if (known !== undefined) {
      this.#resting.wake(known);
      return { id: known, written: false };
    }
    this.#recycle();
    const id = this.#ids.take();
    this.#table.reserve(this.#ids.bound);
    this.#loads.reserve(this.#ids.bound);
    writeEndpoint(this.#table, id, endpoint);
    this.#byAddress.set(key, id);
    this.#uses[id] = 0;
    return { id, written: true };
  }

  /** A slot that holds `id` is about to be published. */
  hold(id: number): void {
    this.#uses[id] = (this.#uses[id] ?? 0) + 1;
  }

  /** A slot that held `id` is read by nobody any more. */
  drop(id: number): void {
    const uses = (this.#uses[id] ?? 1) - 1;
    this.#uses[id] = uses;
    if (uses === 0) this.#resting.add(id);
  }

  /** Connections to it, from SYN to CLOSE. */
  live(id: number): number {
    return this.#loads.has(id) ? Number(this.#loads.long(id, LIVE)) : 0;
  }

  #recycle(): void {
    for (const id of this.#resting.rested()) {
      this.#byAddress.delete(keyOfRecord(this.#table, id));
      this.#ids.give(id);
    }
  }
}

export function readEndpoint(table: ChunkedTable, id: number): EndpointAddress {
  const record = table.record(id);
  const port = fields.port.offset;
  return {
    address: formatAddress(record.subarray(fields.address.offset, fields.address.offset + 16)),
    port: ((record[port] ?? 0) << 8) | (record[port + 1] ?? 0),
  };
}

/** One record, put together here and copied as a whole: a start writes 100,000. */
const draft = new DataView(new ArrayBuffer(layout.endpoint.size));
const draftBytes = new Uint8Array(draft.buffer);

function writeEndpoint(table: ChunkedTable, id: number, { address, port }: EndpointAddress): void {
  const at = fields.address.offset;
  const v4 = parseV4(address);
  if (v4 === undefined) {
    const bytes = parseAddress(address);
    if (!bytes) throw new TypeError(`endpoint address "${address}" is no IP address`);
    draftBytes.set(bytes, at);
  } else {
    draft.setBigUint64(at, 0n);
    draft.setUint32(at + 8, 0xffff);
    draft.setUint32(at + 12, v4);
  }
  draft.setUint16(fields.port.offset, port);
  draft.setUint8(fields.is_v4.offset, v4 === undefined ? 0 : 1);
  table.write(id, draftBytes);
}

/** Ids that live connections count on; `live` is the count's place in the record. */
export function* strays(loads: ChunkedTable, live: number): Generator<number> {
  for (let id = 0; id < loads.capacity; id++) if (loads.long(id, live) !== 0n) yield id;
}

/** A number for IPv4 (address and port in 48 bits), text for IPv6: a start makes 100,000 of them. */
type EndpointKey = number | string;

function keyOf({ address, port }: EndpointAddress): EndpointKey {
  const v4 = parseV4(address);
  return v4 === undefined ? `${address} ${port}` : v4 * 65536 + port;
}

function keyOfRecord(table: ChunkedTable, id: number): EndpointKey {
  const record = table.record(id);
  if (record[fields.is_v4.offset] === 0) return keyOf(readEndpoint(table, id));
  const last = fields.address.offset + 12;
  const v4 =
    (record[last] ?? 0) * 2 ** 24 +
    (((record[last + 1] ?? 0) << 16) | ((record[last + 2] ?? 0) << 8) | (record[last + 3] ?? 0));
  return v4 * 65536 + (((record[fields.port.offset] ?? 0) << 8) | (record[fields.port.offset + 1] ?? 0));
}
