/** A cluster in the kernel (struct descriptor of bpf/maps/tables.h). Immutable after publication. */
import type { Ejection } from "../../mesh/model.ts";
import type { ChunkedTable } from "../tables/chunked-table.ts";
import * as layout from "../tables/layout.gen.ts";

export type Kind = "endpoints" | "split" | "pass" | "refuse" | "port";
export type SlotPolicy = "round-robin" | "random" | "least-request" | "hash";

export interface Run {
  firstLine: number;
  count: number;
}

export interface Descriptor {
  kind: Kind;
  policy: SlotPolicy;
  /** The number of a reason. */
  reason: number;
  maxConnections: number;
  /** The port of kind port; 0 for other kinds. */
  port: number;
  v4: Run;
  v6: Run;
  ejection: Ejection;
  /** The descriptor of the next priority, used when all endpoints of this one are ejected; 0 = none. */
  fallback: number;
  /** A digest of its source, 16 bytes. */
  digest: Uint8Array;
}

const { fields } = layout.descriptor;
const run = layout.run.fields;
const ejection = layout.ejection.fields;
const { cluster_kind: KIND, balance: BALANCE } = layout.enums;

const KINDS: Record<Kind, number> = {
  endpoints: KIND.CLUSTER_ENDPOINTS,
  split: KIND.CLUSTER_SPLIT,
  pass: KIND.CLUSTER_PASS,
  refuse: KIND.CLUSTER_REFUSE,
  port: KIND.CLUSTER_PORT,
};

const POLICIES: Record<SlotPolicy, number> = {
  "round-robin": BALANCE.BALANCE_ROUND_ROBIN,
  random: BALANCE.BALANCE_RANDOM,
  "least-request": BALANCE.BALANCE_LEAST_REQUEST,
  hash: BALANCE.BALANCE_HASH,
};

/** Longest chain of further descriptors (MAX_FALLBACKS of bpf/maps/tables.h). */
export const MAX_FALLBACKS = 8;

export const SLOTS_PER_LINE = layout.slot_line.size / 4;
/** Marks a slot that refuses; the low bits have the reason's number. */
export const SLOT_REFUSE = 0x80000000;

const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** A buffer for one record, which is copied as a whole. */
const draft = new Uint8Array(new ArrayBuffer(layout.descriptor.size));
const draftWords = new Uint32Array(draft.buffer);
const draftHalves = new Uint16Array(draft.buffer);

export function writeDescriptor(table: ChunkedTable, id: number, descriptor: Descriptor): void {
  draft[fields.kind.offset] = KINDS[descriptor.kind];
  draft[fields.balance.offset] = POLICIES[descriptor.policy];
  draft[fields.reason.offset] = descriptor.reason;
  draftWords[fields.max_connections.offset >> 2] = descriptor.maxConnections;
  draftRun(fields.v4.offset, descriptor.v4);
  draftRun(fields.v6.offset, descriptor.v6);
  draftEjection(descriptor.ejection);
  // In network byte order.
  draft[fields.port.offset] = descriptor.port >> 8;
  draft[fields.port.offset + 1] = descriptor.port & 0xff;
  draftWords[fields.fallback.offset >> 2] = descriptor.fallback;
  draft.set(descriptor.digest, fields.digest.offset);
  table.write(id, draft);
}

function draftRun(at: number, { firstLine, count }: Run): void {
  draftWords[(at + run.first_line.offset) >> 2] = firstLine;
  draftWords[(at + run.count.offset) >> 2] = count;
}

function draftEjection({ after, base, longest, percent, enforcing }: Ejection): void {
  const at = fields.ejection.offset;
  draftWords[(at + ejection.after.offset) >> 2] = after;
  draftWords[(at + ejection.base_ms.offset) >> 2] = base;
  draftWords[(at + ejection.longest_ms.offset) >> 2] = longest;
  draftHalves[(at + ejection.percent.offset) >> 1] = percent;
  draftHalves[(at + ejection.enforcing.offset) >> 1] = enforcing;
}

export function readDescriptor(table: ChunkedTable, id: number): Descriptor {
  const record = table.record(id);
  return {
    kind: nameOf(KINDS, record[fields.kind.offset], "refuse"),
    policy: nameOf(POLICIES, record[fields.balance.offset], "round-robin"),
    reason: record[fields.reason.offset] ?? 0,
    maxConnections: table.word(id, fields.max_connections.offset),
    port: ((record[fields.port.offset] ?? 0) << 8) | (record[fields.port.offset + 1] ?? 0),
    v4: readRun(table, id, fields.v4.offset),
    v6: readRun(table, id, fields.v6.offset),
    ejection: readEjection(table, id),
    fallback: readFallback(table, id),
    digest: record.slice(fields.digest.offset, fields.digest.offset + 16),
  };
}

/** Whether the record was compiled from the same source. */
export function hasDigest(table: ChunkedTable, id: number, digest: Uint8Array): boolean {
  const words = new Uint32Array(digest.buffer, digest.byteOffset, digest.length / 4);
  for (let i = 0; i < words.length; i++) {
    if (words[i] !== table.word(id, fields.digest.offset + i * 4)) return false;
  }
  return true;
}

/** The descriptor's own fallback; 0 = none. */
export function readFallback(table: ChunkedTable, id: number): number {
  return table.word(id, fields.fallback.offset);
}

/** The ids of a descriptor and of its fallbacks, in order. */
export function chainOf(table: ChunkedTable, id: number): number[] {
  const chain: number[] = [];
  for (let at = id; at !== 0 && table.has(at) && chain.length <= MAX_FALLBACKS; at = readFallback(table, at))
    chain.push(at);
  return chain;
}

/** The kind, and the runs with slot lines. */
export function readRuns(table: ChunkedTable, id: number): { kind: Kind; runs: Run[] } {
  const kind = nameOf(KINDS, table.record(id)[fields.kind.offset], "refuse");
  return {
    kind,
    runs: runsOf({ v4: readRun(table, id, fields.v4.offset), v6: readRun(table, id, fields.v6.offset) }),
  };
}

/** The runs with slot lines, by family; a run for both families once. */
export function runsOf({ v4, v6 }: Pick<Descriptor, "v4" | "v6">): Run[] {
  const runs = v4.count > 0 ? [v4] : [];
  if (v6.count > 0 && (v4.count === 0 || v6.firstLine !== v4.firstLine)) runs.push(v6);
  return runs;
}

export function linesOf(run: Run): number {
  return Math.ceil(run.count / SLOTS_PER_LINE);
}

/** The slots of a run; the result may be live memory. */
export function readSlots(table: ChunkedTable, run: Run): Uint32Array {
  if (run.count === 0) return new Uint32Array();
  const { buffer, byteOffset } = table.bytesOf(run.firstLine, linesOf(run));
  return new Uint32Array(buffer, byteOffset, run.count);
}

function readRun(table: ChunkedTable, id: number, at: number): Run {
  return {
    firstLine: table.word(id, at + run.first_line.offset),
    count: table.word(id, at + run.count.offset),
  };
}

function readEjection(table: ChunkedTable, id: number): Ejection {
  const at = fields.ejection.offset;
  return {
    after: table.word(id, at + ejection.after.offset),
    base: table.word(id, at + ejection.base_ms.offset),
    longest: table.word(id, at + ejection.longest_ms.offset),
    percent: half(table, id, at + ejection.percent.offset),
    enforcing: half(table, id, at + ejection.enforcing.offset),
  };
}

/** The 16-bit number `at` bytes into the record. */
function half(table: ChunkedTable, id: number, at: number): number {
  const record = table.record(id);
  return new DataView(record.buffer, record.byteOffset).getUint16(at, LITTLE_ENDIAN);
}

function nameOf<T extends string>(numbers: Record<T, number>, number: number | undefined, otherwise: T): T {
  for (const name of Object.keys(numbers) as T[]) if (numbers[name] === number) return name;
  return otherwise;
}
