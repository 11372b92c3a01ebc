/** The kernel's counters as it keeps them (bpf/maps/traffic.h): one row for each pair of a source and a destination. */

import * as layout from "../../datapath/tables/layout.gen.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import { formatAddress } from "../../mesh/address.ts";

export type Direction = "out" | "in" | "refused" | "passed";

const DIRECTIONS: Readonly<Record<number, Direction>> = {
  [layout.enums.flow_direction.FLOW_OUT]: "out",
  [layout.enums.flow_direction.FLOW_IN]: "in",
  [layout.enums.flow_direction.FLOW_REFUSED]: "refused",
  [layout.enums.flow_direction.FLOW_PASSED]: "passed",
};

/** How connections end, by the kernel's number (enum flow_end). */
export const ENDS = [
  "closed",
  /** The SYN was answered by a reset. */
  "refused",
  /** The SYN and at least one retry were not answered. */
  "timed-out",
  /** An ICMP error, or no route. */
  "unreachable",
  /** Established, then reset by the peer, or given up by the kernel. */
  "reset",
  /** Ended by the app: SO_LINGER 0, or closed before an answer. */
  "aborted",
  /** The app connected the same socket elsewhere (AF_UNSPEC): its bytes are lost. */
  "reused",
] as const;
export type End = (typeof ENDS)[number];

/** Ends that are failures of the network or the peer. */
export const FAILURES = ["refused", "timed-out", "unreachable", "reset"] as const satisfies readonly End[];
export type Failure = (typeof FAILURES)[number];

export interface FlowKey {
  /** 48 bits; see sources.ts. 0 = unknown. */
  source: number;
  direction: Direction;
  /** "in": the local port; 0 otherwise. */
  port: number;
  service: number;
  cluster: number;
  /** "refused": the reason (src/mesh/model.ts REASONS). */
  endpoint: number;
  /** "in": the caller's address, canonical. */
  remote: string;
}

/** Counts since the row was created. They never decrease. */
export interface Counters {
  opened: number;
  /** By ENDS. */
  ends: number[];
  /** Payload bytes that this machine's app sent. */
  sent: number;
  received: number;
  /** Segments. */
  retransmits: number;
  /** Duration of failed connects, nanoseconds. */
  failedNs: number;
  /** Duration of ended established connections, nanoseconds. */
  durationNs: number;
  /** Sum of the least round trip of `rtts` connections, microseconds. */
  rttUs: number;
  rtts: number;
}

export interface FlowRow {
  key: FlowKey;
  /** The bytes of the key, for the map. */
  bytes(): Uint8Array;
  counters: Counters;
  /** CLOCK_MONOTONIC, nanoseconds. */
  usedNs: number;
  /** Marked for retirement (retirement.ts): new connections are counted elsewhere. */
  isRetiring: boolean;
}

const KEY = layout.flow_key;
const ROW = layout.flow_row;
const LITTLE = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

export function noCounters(): Counters {
  return {
    opened: 0,
    ends: ENDS.map(() => 0),
    sent: 0,
    received: 0,
    retransmits: 0,
    failedNs: 0,
    durationNs: 0,
    rttUs: 0,
    rtts: 0,
  };
}

/** Adds `more` to `sum`. */
export function addCounters(sum: Counters, more: Counters): void {
  sum.opened += more.opened;
  for (let i = 0; i < sum.ends.length; i++) sum.ends[i] = (sum.ends[i] ?? 0) + (more.ends[i] ?? 0);
  sum.sent += more.sent;
  sum.received += more.received;
  sum.retransmits += more.retransmits;
  sum.failedNs += more.failedNs;
  sum.durationNs += more.durationNs;
  sum.rttUs += more.rttUs;
  sum.rtts += more.rtts;
}

/** The difference to `before`, never negative. */
export function subtractCounters(after: Counters, before: Counters | undefined): Counters {
  if (!before) return after;
  const less = (a: number, b: number) => Math.max(0, a - b);
  return {
    opened: less(after.opened, before.opened),
    ends: after.ends.map((count, i) => less(count, before.ends[i] ?? 0)),
    sent: less(after.sent, before.sent),
    received: less(after.received, before.received),
    retransmits: less(after.retransmits, before.retransmits),
    failedNs: less(after.failedNs, before.failedNs),
    durationNs: less(after.durationNs, before.durationNs),
    rttUs: less(after.rttUs, before.rttUs),
    rtts: less(after.rtts, before.rtts),
  };
}

/** All ended connections. */
export function closedOf(counters: Counters): number {
  let sum = 0;
  for (const count of counters.ends) sum += count;
  return sum;
}

export function endsOf(counters: Counters, end: End): number {
  return counters.ends[ENDS.indexOf(end)] ?? 0;
}

export function failuresOf(counters: Counters): number {
  return FAILURES.reduce((sum, end) => sum + endsOf(counters, end), 0);
}

/** Live connections. */
export function liveOf(counters: Counters): number {
  return Math.max(0, counters.opened - closedOf(counters));
}

/** All rows of flow_rows or caller_rows. Concurrent changes may or may not be included. Throws KernelError. */
export function readRows(map: BpfMap): FlowRow[] {
  const { keys, values, count } = map.entries();
  const rows: FlowRow[] = [];
  const keyView = viewOf(keys);
  const valueView = viewOf(values);
  for (let i = 0; i < count; i++) {
    const key = decodeKey(keyView, keys, i * KEY.size);
    if (!key) continue;
    rows.push({
      key,
      bytes: () => keys.slice(i * KEY.size, (i + 1) * KEY.size),
      counters: decodeCounters(valueView, i * ROW.size),
      usedNs: longAt(valueView, i * ROW.size + ROW.fields.used_ns.offset),
      isRetiring: valueView.getUint32(i * ROW.size + ROW.fields.retiring.offset, LITTLE) !== 0,
    });
  }
  return rows;
}

/** Undefined for an unknown direction of a later version. */
export function decodeKey(view: DataView, bytes: Uint8Array, at: number): FlowKey | undefined {
  const { fields } = KEY;
  const direction = DIRECTIONS[view.getUint8(at + fields.direction.offset)];
  if (direction === undefined) return undefined;
  const inbound = direction === "in";
  const word = (offset: number) => (inbound ? 0 : view.getUint32(at + offset, LITTLE));
  return {
    source: longAt(view, at + fields.source.offset),
    direction,
    port: view.getUint16(at + fields.port.offset),
    service: word(fields.service.offset),
    cluster: word(fields.cluster.offset),
    endpoint: word(fields.endpoint.offset),
    remote: inbound
      ? formatAddress(bytes.subarray(at + fields.remote.offset, at + fields.remote.offset + 16))
      : "",
  };
}

export function decodeCounters(view: DataView, at: number): Counters {
  const { fields } = ROW;
  const long = (offset: number) => longAt(view, at + offset);
  return {
    opened: long(fields.opened.offset),
    ends: ends(view, at + fields.ends.offset),
    sent: long(fields.sent.offset),
    received: long(fields.received.offset),
    retransmits: long(fields.retransmits.offset),
    failedNs: long(fields.failed_ns.offset),
    durationNs: long(fields.duration_ns.offset),
    rttUs: long(fields.rtt_us.offset),
    rtts: long(fields.rtts.offset),
  };
}

function ends(view: DataView, at: number): number[] {
  const counts: number[] = [];
  for (let i = 0; i < ENDS.length; i++) counts.push(longAt(view, at + i * 8));
  return counts;
}

/** Encodes counters for `decodeCounters`. */
export function encodeCounters(counters: Counters, view: DataView, at: number): void {
  const { fields } = ROW;
  const put = (offset: number, value: number) => view.setBigUint64(at + offset, BigInt(value), LITTLE);
  put(fields.opened.offset, counters.opened);
  counters.ends.forEach((count, i) => {
    put(fields.ends.offset + i * 8, count);
  });
  put(fields.sent.offset, counters.sent);
  put(fields.received.offset, counters.received);
  put(fields.retransmits.offset, counters.retransmits);
  put(fields.failed_ns.offset, counters.failedNs);
  put(fields.duration_ns.offset, counters.durationNs);
  put(fields.rtt_us.offset, counters.rttUs);
  put(fields.rtts.offset, counters.rtts);
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The 8 bytes as a number: exact up to 2^53, 9 PB. */
export function longAt(view: DataView, at: number): number {
  const low = view.getUint32(LITTLE ? at : at + 4, LITTLE);
  const high = view.getUint32(LITTLE ? at + 4 : at, LITTLE);
  return high * 4294967296 + low;
}
