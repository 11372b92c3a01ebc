/** Reads all counters of the kernel. */

import * as layout from "../../datapath/tables/layout.gen.ts";
import type { Maps } from "../../datapath/tables/tables.ts";
import { monotonic } from "../../kernel/clock.ts";
import { fixedText } from "../../kernel/info.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import {
  type Counters,
  type Direction,
  decodeCounters,
  type FlowRow,
  longAt,
  readRows,
  viewOf,
} from "./rows.ts";

/** Sums of retired rows (retirement.ts). */
export interface RetiredRow {
  /** Of the entry, as text. */
  id: string;
  source: number;
  direction: Direction;
  /** "host:port"; "in": the local port. */
  service: string;
  /** istiod's workload label; "" without one. "refused": the reason. */
  workload: string;
  counters: Counters;
}

/** Bucket i counts values below 2^i units and not below 2^(i-1), the last one all that are larger. */
export interface LatencyRow {
  source: number;
  /** "in": the local port. */
  service: number;
  direction: Direction;
  /** Least round trips, in microseconds. */
  rtt: number[];
  /** In units of 256 us. */
  duration: number[];
}

export interface Reading {
  /** CLOCK_MONOTONIC, nanoseconds. */
  atNs: number;
  /** Date.now() of the same moment. */
  wall: number;
  /** All directions. */
  rows: FlowRow[];
  retired: RetiredRow[];
  latency: LatencyRow[];
  /** Connections without a row, because the table was full. */
  other: { out: Counters; in: Counters };
  room: { rows: number; callers: number };
}

/** How often rows and sums are read again when an agent moved a row into a sum meanwhile. */
const MOST_LOOKS = 8;

/** Reads everything. Call flush before. Throws KernelError. */
export function readTraffic(maps: Maps): Reading {
  return {
    atNs: Number(monotonic()),
    wall: Date.now(),
    ...readBoth(maps),
    latency: readLatency(maps.latency_rows),
    other: {
      out: readOther(maps.traffic_other, layout.enums.other.OTHER_OUT),
      in: readOther(maps.traffic_other, layout.enums.other.OTHER_IN),
    },
    room: { rows: maps.flow_rows.info.maxEntries, callers: maps.caller_rows.info.maxEntries },
  };
}

/**
 * Rows and sums of one moment. Each retirement leaves another record (map `retirement`), since what it stores is absolute. One
 * that an agent left half done is read as if it were done.
 */
function readBoth(maps: Maps): Pick<Reading, "rows" | "retired"> {
  const read = () => {
    const value = new Uint8Array(new ArrayBuffer(RECORD.size));
    maps.retirement.lookup(new Uint8Array(4), value);
    return value;
  };
  let before = read();
  for (let look = 1; ; look++) {
    const rows = [...readRows(maps.flow_rows), ...readRows(maps.caller_rows)];
    const retired = readRetired(maps.retired_rows);
    const after = read();
    if (look < MOST_LOOKS && Buffer.compare(before, after) !== 0) {
      before = after;
      continue;
    }
    if (longAt(viewOf(after), RECORD.fields.pending.offset) !== 1) return { rows, retired };
    const part = (field: "from" | "to" | "sum") => {
      const { offset, size } = RECORD.fields[field];
      return after.slice(offset, offset + size);
    };
    const from = part("from");
    const [done] = decodeRetired(part("to"), part("sum"), 1);
    return {
      rows: rows.filter((row) => Buffer.compare(row.bytes(), from) !== 0),
      retired: [...retired.filter(({ id }) => id !== done?.id), ...(done ? [done] : [])],
    };
  }
}

export function readOther(map: BpfMap, at: number): Counters {
  const value = new Uint8Array(new ArrayBuffer(layout.flow_row.size));
  map.lookup(new Uint8Array(Uint32Array.of(at).buffer), value);
  return decodeCounters(viewOf(value), 0);
}

export function readRetired(map: BpfMap): RetiredRow[] {
  const { keys, values, count } = map.entries();
  return decodeRetired(keys, values, count);
}

function decodeRetired(keys: Uint8Array, values: Uint8Array, count: number): RetiredRow[] {
  const keyView = viewOf(keys);
  const valueView = viewOf(values);
  const { label } = layout.retired_row.fields;
  const { size } = layout.retired_key;
  return Array.from({ length: count }, (_, i) => {
    const at = i * layout.retired_row.size;
    const text = fixedText(values.subarray(at + label.offset, at + label.offset + label.size));
    const [service = "", workload = ""] = text.split("\n");
    const direction = keyView.getUint8(
      i * layout.retired_key.size + layout.retired_key.fields.direction.offset,
    );
    return {
      id: Buffer.from(keys.subarray(i * size, (i + 1) * size)).toString("hex"),
      source: longAt(keyView, i * size),
      direction: DIRECTIONS[direction] ?? "out",
      service,
      workload,
      counters: decodeCounters(valueView, at + layout.retired_row.fields.sum.offset),
    };
  }).filter(({ counters }) => counters.opened > 0);
}

const RECORD = layout.retirement;
const DIRECTIONS: Readonly<Record<number, Direction>> = { 1: "out", 2: "in", 3: "refused", 4: "passed" };
const BUCKETS = layout.latency_row.fields.rtt.count;

function readLatency(map: BpfMap): LatencyRow[] {
  const { keys, values, count } = map.entries();
  const keyView = viewOf(keys);
  const valueView = viewOf(values);
  const { fields } = layout.latency_row;
  const buckets = (at: number) => Array.from({ length: BUCKETS }, (_, b) => longAt(valueView, at + b * 8));
  const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
  return Array.from({ length: count }, (_, i) => ({
    source: longAt(keyView, i * layout.latency_key.size),
    service: keyView.getUint32(
      i * layout.latency_key.size + layout.latency_key.fields.service.offset,
      little,
    ),
    direction:
      DIRECTIONS[
        keyView.getUint32(i * layout.latency_key.size + layout.latency_key.fields.direction.offset, little)
      ] ?? "out",
    rtt: buckets(i * layout.latency_row.size + fields.rtt.offset),
    duration: buckets(i * layout.latency_row.size + fields.duration.offset),
  }));
}
