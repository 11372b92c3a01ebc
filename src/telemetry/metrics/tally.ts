/**
 * Adds rows up to series: Istio's by workload and service, kmesh's own by unit and service. The series of a row is looked up
 * once and kept until names change: a scrape has ten thousand rows, and pushes wait meanwhile.
 */

import * as layout from "../../datapath/tables/layout.gen.ts";
import { REASONS } from "../../mesh/model.ts";
import type { Rows, RowTable } from "../counters/row-table.ts";
import { type Counters, closedOf, endsOf } from "../counters/rows.ts";
import type { Sources } from "../counters/sources.ts";
import type { Labels } from "../labels.ts";
import { unitId } from "../sums.ts";
import { type LabelSet, labelSet, type Labels as MetricLabels } from "./exposition.ts";
import { destinationLabels, FLAGS, type SelfLabels, sourceLabels } from "./istio-labels.ts";

/** Most label sets of Istio's metrics. Further rows are added to their service's set, with an unknown destination workload. */
export const MOST_LABEL_SETS = 10_000;
/** Most pairs of a unit and a service that have series of their own. Others are added to unit="other", service="other". */
export const MOST_PAIRS = 2_000;
/** Most pairs that have histograms of their own: two dozen series each. */
export const MOST_HISTOGRAMS = 200;
export const OTHER = "other";

const ROW = layout.flow_row.fields;
const LATENCY = layout.latency_row.fields;
const BUCKETS = LATENCY.rtt.count;
const { FLOW_OUT, FLOW_IN, FLOW_REFUSED, FLOW_PASSED } = layout.enums.flow_direction;
const END = layout.enums.flow_end;
const ENDS = ROW.ends.count;
/** Above the ids of endpoints in a key of two numbers. */
const ENDPOINTS = 2 ** 26;
/** Rows of a piece: with names that are new, some milliseconds. */
const PIECE = 64;

/** Label sets, and the numbers of each, by one index. */
export class Series<Field extends string> {
  readonly sets: LabelSet[] = [];
  readonly fields: readonly Field[];
  #values: Float64Array;
  #used: Uint8Array;
  readonly #at: ReadonlyMap<Field, number>;

  constructor(fields: readonly Field[]) {
    this.fields = fields;
    this.#at = new Map(fields.map((field, i) => [field, i]));
    this.#values = new Float64Array(fields.length * 64);
    this.#used = new Uint8Array(64);
  }

  /** Returns the new series' index. */
  add(labels: MetricLabels): number {
    const index = this.sets.push(labelSet(labels)) - 1;
    if (index >= this.#used.length) {
      const values = new Float64Array(this.#values.length * 2);
      values.set(this.#values);
      this.#values = values;
      const used = new Uint8Array(this.#used.length * 2);
      used.set(this.#used);
      this.#used = used;
    }
    return index;
  }

  /** All numbers are zero, and no series is used. */
  clear(): void {
    this.#values.fill(0);
    this.#used.fill(0);
  }

  /** Marks a series as used. Returns where its numbers begin in `values`; they are in the order of `fields`. */
  use(index: number): number {
    this.#used[index] = 1;
    return index * this.fields.length;
  }

  get values(): Float64Array {
    return this.#values;
  }

  /** A field's values of these series, times `scale`. */
  column(field: Field, indexes: readonly number[], scale = 1): Float64Array {
    const column = new Float64Array(indexes.length);
    const at = this.#at.get(field) ?? 0;
    const step = this.fields.length;
    for (let i = 0; i < column.length; i++)
      column[i] = (this.#values[(indexes[i] ?? 0) * step + at] ?? 0) * scale;
    return column;
  }

  /** Indexes of the used series. */
  used(): number[] {
    const used: number[] = [];
    for (let index = 0; index < this.sets.length; index++) if (this.#used[index] === 1) used.push(index);
    return used;
  }
}

export const ISTIO_FIELDS = ["opened", "closed", "received", "sent"] as const;
export type IstioField = (typeof ISTIO_FIELDS)[number];

/** Fields of a pair; the last ones are its ends, by the kernel's number. */
export const PAIR_FIELDS = [
  ...(["opened", "sent", "received", "retransmits", "failedNs", "durationNs", "rttUs"] as const),
  ...(["end0", "end1", "end2", "end3", "end4", "end5", "end6", "end7"] as const),
] as const;
const FIRST_END = PAIR_FIELDS.indexOf("end0");

export interface TallyOptions {
  labels: Labels;
  sources: Sources;
  self: SelfLabels;
  /** "host:port" of the service of a local port. */
  inbound(port: number): string | undefined;
}

/** Cumulative counts of a pair's connections. */
export interface PairHistograms {
  rtt: Float64Array;
  duration: Float64Array;
  /** The pairs that are in it. */
  of: Set<number>;
}

export class Tally {
  readonly #options: TallyOptions;
  #revision = Number.NaN;
  /** Indexes, by what the labels are made from. */
  #sets = new Map<string, number>();
  #pairIds = new Map<string, number>();
  /** By service and endpoint, or reason; one map for each direction but "in". */
  #slots = new Map<number, Map<number, number>>();
  /** By source, then by service. */
  #pairSlots = new Map<number, Map<number, number>>();
  #units = new Map<number, string>();
  istio = new Series<IstioField>(ISTIO_FIELDS);
  pairs = new Series<(typeof PAIR_FIELDS)[number]>(PAIR_FIELDS);
  /** Refused on purpose: by a pair's index, then by reason. */
  readonly refused = new Map<number, Map<string, number>>();
  /** By a pair's index. The pair OTHER has the sums of pairs without histograms of their own. */
  readonly histograms = new Map<number, PairHistograms>();

  constructor(options: TallyOptions) {
    this.#options = options;
  }

  /** Adds up these rows. The members have the totals until the next call. */
  take(rows: Rows): void {
    for (const _ of this.pieces(rows));
  }

  /** The same in pieces. The members have the totals after the last piece, if no name changed meanwhile. */
  *pieces(rows: Rows): Generator<undefined, void> {
    this.#refresh();
    this.istio.clear();
    this.pairs.clear();
    this.refused.clear();
    this.histograms.clear();
    for (let row = 0; row < rows.out.count; row++) {
      this.#addOut(rows.out, row);
      if (row % PIECE === PIECE - 1) yield;
    }
    for (let row = 0; row < rows.in.count; row++) {
      this.#addIn(rows.in, row);
      if (row % PIECE === PIECE - 1) yield;
    }
    for (const [row, { source, direction, service, workload, counters }] of rows.retired.entries()) {
      if (row % PIECE === PIECE - 1) yield;
      const name = service === "" ? undefined : service;
      if (direction === "out") {
        this.#addCounters(name, workload, counters);
        this.#addToPair(this.#pair(this.#unit(source), name), counters);
      } else if (direction === "in") this.#addAccepted(workload, Number(service), counters);
      else if (direction === "refused") {
        this.#addRefused(this.#refusalSet(name, workload), counters.opened);
        this.#addReason(this.#pair(this.#unit(source), name), workload || "internal", counters.opened);
      } else if (direction === "passed") this.#addRefused(this.#passedSet(name), counters.opened);
    }
    if (rows.other.out.opened > 0) this.#addCounters(undefined, "", rows.other.out);
    if (rows.other.in.opened > 0) this.#addAccepted("", undefined, rows.other.in);
    this.#addLatency(rows);
  }

  #addOut(rows: RowTable, row: number): void {
    const direction = rows.direction(row);
    const service = rows.service(row);
    const endpoint = rows.endpoint(row);
    if (direction === FLOW_PASSED) {
      this.#addRefused(
        this.#slot(direction, service, 0, () => this.#passedSet(this.#options.labels.service(service))),
        rows.long(row, ROW.opened.offset),
      );
      return;
    }
    if (direction === FLOW_REFUSED) {
      const reason = REASONS[endpoint] ?? "internal";
      const opened = rows.long(row, ROW.opened.offset);
      const set = this.#slot(direction, service, endpoint, () =>
        this.#refusalSet(this.#options.labels.service(service), reason),
      );
      this.#addRefused(set, opened);
      this.#addReason(this.#pairSlot(rows.source(row), service), reason, opened);
      return;
    }
    if (direction !== FLOW_OUT) return;
    const { labels } = this.#options;
    const slots = this.#slotsOf(direction);
    const slot = service * ENDPOINTS + endpoint;
    let set = slots.get(slot);
    if (set === undefined) {
      set = this.#source(labels.service(service), labels.workload(endpoint, service), "-");
      slots.set(slot, set);
    }
    const sent = rows.long(row, ROW.sent.offset);
    const received = rows.long(row, ROW.received.offset);
    const opened = rows.long(row, ROW.opened.offset);
    const pairAt = this.pairs.use(this.#pairSlot(rows.source(row), service));
    const pairs = this.pairs.values;
    let closed = 0;
    let failed = 0;
    for (let end = 0; end < ENDS; end++) {
      const count = rows.long(row, ROW.ends.offset + end * 8);
      if (count === 0) continue;
      add(pairs, pairAt + FIRST_END + end, count);
      if (isFailedConnect(end)) failed += count;
      else closed += count;
    }
    // In the order of PAIR_FIELDS.
    add(pairs, pairAt, opened);
    add(pairs, pairAt + 1, sent);
    add(pairs, pairAt + 2, received);
    add(pairs, pairAt + 3, rows.long(row, ROW.retransmits.offset));
    add(pairs, pairAt + 4, rows.long(row, ROW.failed_ns.offset));
    add(pairs, pairAt + 5, rows.long(row, ROW.duration_ns.offset));
    add(pairs, pairAt + 6, rows.long(row, ROW.rtt_us.offset));
    const istioAt = this.istio.use(set);
    const istio = this.istio.values;
    add(istio, istioAt, opened);
    add(istio, istioAt + 1, closed);
    // What the client sent is the request, which Istio calls received.
    add(istio, istioAt + 2, sent);
    add(istio, istioAt + 3, received);
    if (failed > 0) this.#addFailed(labels.service(service), labels.workload(endpoint, service), failed);
  }

  #addIn(rows: RowTable, row: number): void {
    if (rows.direction(row) !== FLOW_IN) return;
    const set = this.#destination(this.#options.labels.caller(rows.remote(row)), rows.port(row));
    let closed = 0;
    for (let end = 0; end < ENDS; end++) closed += rows.long(row, ROW.ends.offset + end * 8);
    addTo(this.istio.values, this.istio.use(set), [
      rows.long(row, ROW.opened.offset),
      closed,
      rows.long(row, ROW.received.offset),
      rows.long(row, ROW.sent.offset),
    ]);
  }

  /** By who called and the local port; undefined: it is not known. */
  #destination(caller: string, port: number | undefined): number {
    const { self, inbound } = this.#options;
    const service = port === undefined ? undefined : inbound(port);
    return this.#set(`destination\n${caller}\n${service}`, () => destinationLabels(self, caller, service));
  }

  #addAccepted(caller: string, port: number | undefined, counters: Counters): void {
    const { opened, received, sent } = counters;
    const at = this.istio.use(this.#destination(caller, port));
    addTo(this.istio.values, at, [opened, closedOf(counters), received, sent]);
  }

  #addCounters(service: string | undefined, workload: string, counters: Counters): void {
    const failed =
      endsOf(counters, "refused") + endsOf(counters, "timed-out") + endsOf(counters, "unreachable");
    const at = this.istio.use(this.#source(service, workload, "-"));
    const closed = closedOf(counters) - failed;
    addTo(this.istio.values, at, [counters.opened, closed, counters.sent, counters.received]);
    if (failed > 0) this.#addFailed(service, workload, failed);
  }

  /** Envoy gives a connection that never was the flag UF, and counts it as closed there. */
  #addFailed(service: string | undefined, workload: string, failed: number): void {
    addTo(this.istio.values, this.istio.use(this.#source(service, workload, "UF")), [0, failed, 0, 0]);
  }

  #addRefused(set: number, opened: number): void {
    addTo(this.istio.values, this.istio.use(set), [opened, opened, 0, 0]);
  }

  #addReason(pair: number, reason: string, count: number): void {
    this.pairs.use(pair);
    let reasons = this.refused.get(pair);
    if (!reasons) {
      reasons = new Map();
      this.refused.set(pair, reasons);
    }
    reasons.set(reason, (reasons.get(reason) ?? 0) + count);
  }

  #addToPair(pair: number, counters: Counters): void {
    const { opened, sent, received, retransmits, failedNs, durationNs, rttUs, ends } = counters;
    addTo(this.pairs.values, this.pairs.use(pair), [
      ...[opened, sent, received, retransmits, failedNs, durationNs, rttUs],
      ...ends,
    ]);
  }

  #addLatency({ latency }: Rows): void {
    const { source, service, direction } = layout.latency_key.fields;
    for (let row = 0; row < latency.count; row++) {
      if (latency.keyWord(row, direction.offset) !== FLOW_OUT) continue;
      const own = this.#pairSlot(latency.keyLong(row, source.offset), latency.keyWord(row, service.offset));
      let pair = own;
      if (!this.histograms.has(pair) && this.histograms.size >= MOST_HISTOGRAMS) pair = this.#otherPair();
      let sum = this.histograms.get(pair);
      if (!sum) {
        sum = { rtt: new Float64Array(BUCKETS), duration: new Float64Array(BUCKETS), of: new Set() };
        this.histograms.set(pair, sum);
      }
      sum.of.add(own);
      for (let i = 0; i < BUCKETS; i++) {
        sum.rtt[i] = (sum.rtt[i] ?? 0) + latency.long(row, LATENCY.rtt.offset + i * 8);
        sum.duration[i] = (sum.duration[i] ?? 0) + latency.long(row, LATENCY.duration.offset + i * 8);
      }
    }
  }

  #slot(direction: number, service: number, endpoint: number, make: () => number): number {
    const slots = this.#slotsOf(direction);
    const key = service * ENDPOINTS + endpoint;
    let slot = slots.get(key);
    if (slot === undefined) {
      slot = make();
      slots.set(key, slot);
    }
    return slot;
  }

  #slotsOf(direction: number): Map<number, number> {
    let slots = this.#slots.get(direction);
    if (!slots) {
      slots = new Map();
      this.#slots.set(direction, slots);
    }
    return slots;
  }

  #pairSlot(source: number, service: number): number {
    let slots = this.#pairSlots.get(source);
    if (!slots) {
      slots = new Map();
      this.#pairSlots.set(source, slots);
    }
    let slot = slots.get(service);
    if (slot === undefined) {
      slot = this.#pair(this.#unit(source), this.#options.labels.service(service));
      slots.set(service, slot);
    }
    return slot;
  }

  #pair(unit: string, service: string | undefined): number {
    const known = this.#pairIds.get(`${unit}\n${service}`);
    if (known !== undefined) return known;
    if (this.pairs.sets.length >= MOST_PAIRS) return this.#otherPair();
    return this.#newPair(unit, service ?? "none", `${unit}\n${service}`);
  }

  #otherPair(): number {
    return this.#pairIds.get(OTHER) ?? this.#newPair(OTHER, OTHER, OTHER);
  }

  #newPair(unit: string, service: string, id: string): number {
    const index = this.pairs.add([
      ["unit", unit],
      ["service", service],
    ]);
    this.#pairIds.set(id, index);
    return index;
  }

  #unit(source: number): string {
    let unit = this.#units.get(source);
    if (unit === undefined) {
      unit = unitLabel(this.#options.sources, source);
      this.#units.set(source, unit);
    }
    return unit;
  }

  #source(service: string | undefined, workload: string, flags: string): number {
    const known = this.#sets.get(`source\n${service}\n${workload}\n${flags}`);
    if (known !== undefined) return known;
    const named = this.istio.sets.length < MOST_LABEL_SETS ? workload : "";
    return this.#set(`source\n${service}\n${named}\n${flags}`, () =>
      sourceLabels(this.#options.self, service, named, flags),
    );
  }

  /** Of refusals on purpose; "" is a reason that an earlier version did not keep. */
  #refusalSet(service: string | undefined, reason: string): number {
    const name = reason === "not-in-registry" ? "BlackHoleCluster" : service;
    return this.#source(name, "", FLAGS[reason] ?? "DENY");
  }

  /** Of connections that went where the app asked to: a service without resolution, or none of the mesh. */
  #passedSet(service: string | undefined): number {
    return this.#source(service ?? "PassthroughCluster", "", "-");
  }

  #set(key: string, make: () => MetricLabels): number {
    let set = this.#sets.get(key);
    if (set === undefined) {
      set = this.istio.add(make());
      this.#sets.set(key, set);
    }
    return set;
  }

  /** Forgets what means something else now, and series that nobody has used for long when they take the room. */
  #refresh(): void {
    const { labels, sources } = this.#options;
    if (this.istio.sets.length >= MOST_LABEL_SETS && this.istio.used().length < MOST_LABEL_SETS / 2) {
      this.istio = new Series(ISTIO_FIELDS);
      this.#sets = new Map();
      this.#revision = Number.NaN;
    }
    if (this.pairs.sets.length >= MOST_PAIRS && this.pairs.used().length < MOST_PAIRS / 2) {
      this.pairs = new Series(PAIR_FIELDS);
      this.#pairIds = new Map();
      this.#revision = Number.NaN;
    }
    const isOther = [...this.#units].some(([source, unit]) => unitLabel(sources, source) !== unit);
    if (labels.revision === this.#revision && !isOther) return;
    this.#revision = labels.revision;
    this.#slots = new Map();
    this.#pairSlots = new Map();
    this.#units = new Map();
  }
}

function unitLabel(sources: Sources, source: number): string {
  return unitId(sources.of(source)).replace(/^unit:/, "");
}

function isFailedConnect(end: number): boolean {
  return (
    end === END.FLOW_CONNECT_REFUSED || end === END.FLOW_CONNECT_TIMED_OUT || end === END.FLOW_UNREACHABLE
  );
}

function addTo(values: Float64Array, at: number, more: readonly number[]): void {
  for (let i = 0; i < more.length; i++) add(values, at + i, more[i] ?? 0);
}

function add(values: Float64Array, at: number, more: number): void {
  values[at] = (values[at] ?? 0) + more;
}
