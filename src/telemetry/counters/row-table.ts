/** Maps of counters as the kernel gives them, read by column: a scrape of ten thousand rows makes no object for each. */

import * as layout from "../../datapath/tables/layout.gen.ts";
import type { Maps } from "../../datapath/tables/tables.ts";
import { formatAddress } from "../../mesh/address.ts";
import { type RetiredRow, readOther, readRetired } from "./reading.ts";
import type { Counters } from "./rows.ts";

/** What `BpfMap.entries` gives. */
export interface Entries {
  keys: Uint8Array;
  values: Uint8Array;
  count: number;
}

const KEY = layout.flow_key;
const LITTLE = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** Values of any map, by row and the offset of a field. */
export class Columns {
  readonly count: number;
  protected readonly keys: Uint8Array;
  readonly #keyWords: Uint32Array;
  readonly #valueWords: Uint32Array;
  readonly #keySize: number;
  readonly #valueSize: number;

  /** Both sizes are multiples of four. */
  constructor({ keys, values, count }: Entries, keySize: number, valueSize: number) {
    this.count = count;
    this.keys = keys;
    this.#keyWords = new Uint32Array(keys.buffer, keys.byteOffset, keys.byteLength >> 2);
    this.#valueWords = new Uint32Array(values.buffer, values.byteOffset, values.byteLength >> 2);
    this.#keySize = keySize;
    this.#valueSize = valueSize;
  }

  /** A word of the row's key. */
  keyWord(row: number, offset: number): number {
    return this.#keyWords[(row * this.#keySize + offset) >> 2] ?? 0;
  }

  /** 8 bytes of the row's key, exact up to 2^53. */
  keyLong(row: number, offset: number): number {
    const at = (row * this.#keySize + offset) >> 2;
    return long(this.#keyWords[at] ?? 0, this.#keyWords[at + 1] ?? 0);
  }

  /** A word of the row's value. */
  word(row: number, offset: number): number {
    return this.#valueWords[(row * this.#valueSize + offset) >> 2] ?? 0;
  }

  /** 8 bytes of the row's value, exact up to 2^53. */
  long(row: number, offset: number): number {
    const at = (row * this.#valueSize + offset) >> 2;
    return long(this.#valueWords[at] ?? 0, this.#valueWords[at + 1] ?? 0);
  }
}

function long(first: number, second: number): number {
  return LITTLE ? second * 4294967296 + first : first * 4294967296 + second;
}

/** flow_rows or caller_rows. */
export class RowTable extends Columns {
  constructor(entries: Entries) {
    super(entries, KEY.size, layout.flow_row.size);
  }

  /** enum flow_direction; a later version may know more. */
  direction(row: number): number {
    return this.keys[row * KEY.size + KEY.fields.direction.offset] ?? 0;
  }

  source(row: number): number {
    return this.keyLong(row, KEY.fields.source.offset);
  }

  service(row: number): number {
    return this.keyWord(row, KEY.fields.service.offset);
  }

  endpoint(row: number): number {
    return this.keyWord(row, KEY.fields.endpoint.offset);
  }

  /** The local port of an inbound row. */
  port(row: number): number {
    const at = row * KEY.size + KEY.fields.port.offset;
    const [first = 0, second = 0] = [this.keys[at], this.keys[at + 1]];
    // In network order.
    return first * 256 + second;
  }

  /** Who connected, of an inbound row: canonical text. */
  remote(row: number): string {
    const at = row * KEY.size + KEY.fields.remote.offset;
    return formatAddress(this.keys.subarray(at, at + 16));
  }
}

/** All that a scrape reads of the kernel's counters. */
export interface Rows {
  out: RowTable;
  in: RowTable;
  /** latency_rows. */
  latency: Columns;
  retired: RetiredRow[];
  /** What found no row. */
  other: { out: Counters; in: Counters };
  room: { rows: number; callers: number };
}

/** Flush before it. Throws KernelError. */
export function readRowTables(maps: Maps): Rows {
  const { latency_key, latency_row } = layout;
  return {
    out: new RowTable(maps.flow_rows.entries()),
    in: new RowTable(maps.caller_rows.entries()),
    latency: new Columns(maps.latency_rows.entries(), latency_key.size, latency_row.size),
    retired: readRetired(maps.retired_rows),
    other: {
      out: readOther(maps.traffic_other, layout.enums.other.OTHER_OUT),
      in: readOther(maps.traffic_other, layout.enums.other.OTHER_IN),
    },
    room: { rows: maps.flow_rows.info.maxEntries, callers: maps.caller_rows.info.maxEntries },
  };
}
