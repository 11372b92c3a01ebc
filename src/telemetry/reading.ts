/** All counters at one moment, as the kernel has them. */

import * as layout from "../datapath/tables/layout.gen.ts";
import type { Maps } from "../datapath/tables/tables.ts";
import { monotonic } from "../kernel/clock.ts";
import { fixedText } from "../kernel/info.ts";
import type { BpfMap } from "../kernel/maps.ts";
import {
  type Counters,
  type Direction,
  decodeCounters,
  type FlowRow,
  longAt,
  readRows,
  viewOf,
} from "./rows.ts";

/** Sums of rows that are gone (src/telemetry/retirement.ts). */
export interface RetiredRow {
  source: number;
  direction: Direction;
  /** "host:port"; "in": the local port. */
  service: string;
  /** istiod's words; "" when there are none. */
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
  /** What found no row. */
  other: { out: Counters; in: Counters };
  room: { rows: number; callers: number };
}

/** Reads everything; flush before it. Throws KernelError. */
export function readTraffic(maps: Maps): Reading {
  return {
    atNs: Number(monotonic()),
    wall: Date.now(),
    rows: [...readRows(maps.flow_rows), ...readRows(maps.caller_rows)],
    retired: readRetired(maps.retired_rows),
    latency: readLatency(maps.latency_rows),
    other: {
      out: readOther(maps.traffic_other, layout.enums.other.OTHER_OUT),
      in: readOther(maps.traffic_other, layout.enums.other.OTHER_IN),
    },
    room: { rows: maps.flow_rows.info.maxEntries, callers: maps.caller_rows.info.maxEntries },
  };
}

export function readOther(map: BpfMap, at: number): Counters {
  const value = new Uint8Array(new ArrayBuffer(layout.flow_row.size));
  map.lookup(new Uint8Array(Uint32Array.of(at).buffer), value);
  return decodeCounters(viewOf(value), 0);
}

export function readRetired(map: BpfMap): RetiredRow[] {
  const { keys, values, count } = map.entries();
  const keyView = viewOf(keys);
  const valueView = viewOf(values);
  const { label } = layout.retired_row.fields;
  return Array.from({ length: count }, (_, i) => {
    const at = i * layout.retired_row.size;
    const text = fixedText(values.subarray(at + label.offset, at + label.offset + label.size));
    const [service = "", workload = ""] = text.split("\n");
    const direction = keyView.getUint8(
      i * layout.retired_key.size + layout.retired_key.fields.direction.offset,
    );
    return {
      source: longAt(keyView, i * layout.retired_key.size),
      direction: DIRECTIONS[direction] ?? "out",
      service,
      workload,
      counters: decodeCounters(valueView, at + layout.retired_row.fields.sum.offset),
    };
  }).filter(({ counters }) => counters.opened > 0);
}

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
