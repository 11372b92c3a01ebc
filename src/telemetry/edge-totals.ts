/**
 * The totals of each edge for the history, under the ids of sums.ts. The agent adds them up every ten seconds while pushes
 * wait, so a row makes no object, and what it is added to is looked up once and kept while names mean the same.
 */
import * as layout from "../datapath/tables/layout.gen.ts";
import { REASONS } from "../mesh/model.ts";
import type { RetiredRow } from "./counters/reading.ts";
import type { Rows, RowTable } from "./counters/row-table.ts";
import { type Counters, ENDS } from "./counters/rows.ts";
import type { Sources } from "./counters/sources.ts";
import { refusedId } from "./edges.ts";
import type { Labels } from "./labels.ts";
import { callerId, edgeId, endpointId, formerCallerId, outsideId, serviceId, unitId } from "./sums.ts";
import { type TunnelCounts, tunnelTotals } from "./tunnel-summary.ts";

const ROW = layout.flow_row.fields;
const { FLOW_OUT, FLOW_IN, FLOW_REFUSED, FLOW_PASSED } = layout.enums.flow_direction;
/** The values of an edge, in this order; then its ends. */
const OFFSETS = (
  ["opened", "sent", "received", "retransmits", "failed_ns", "duration_ns", "rtt_us", "rtts"] as const
).map((field) => ROW[field].offset);
const FIRST_END = OFFSETS.length;
const STEP = FIRST_END + ENDS.length;
/** Above the ids of endpoints in a key of two numbers, and above the numbers of edges in a pair of them. */
const HALF = 2 ** 26;
const NO_EDGE = HALF - 1;

export class EdgeTotals {
  readonly #labels: Labels;
  readonly #sources: Sources;
  /** The edge's number is its index; `#numbers` has it by the id. */
  #ids: string[] = [];
  #numbers = new Map<string, number>();
  #values = new Float64Array(STEP * 64);
  #used = new Uint8Array(64);
  /** The one or two edges that a row counts for, by direction, source, and by service and endpoint. */
  #routes = new Map<number, Map<number, Map<number, number>>>();
  #units = new Map<number, string>();
  #revision = Number.NaN;

  /** Both stay the caller's; `sources` must be refreshed before each `take`. */
  constructor(labels: Labels, sources: Sources) {
    this.#labels = labels;
    this.#sources = sources;
  }

  /** The totals of these rows, and of what the tunnel counts, are what `keys` and `get` give, until the next call. */
  take(rows: Rows, tunnels: readonly TunnelCounts[] = []): void {
    this.#refresh();
    this.#values.fill(0);
    this.#used.fill(0);
    for (let row = 0; row < rows.out.count; row++) this.#addOut(rows.out, row);
    for (let row = 0; row < rows.in.count; row++) this.#addIn(rows.in, row);
    for (const row of rows.retired) this.#addRetired(row);
    for (const [id, counters] of tunnelTotals(tunnels)) this.#addCounters(id, counters);
  }

  /** The ids of edges that are there. */
  *keys(): Generator<string, undefined> {
    for (const [edge, id] of this.#ids.entries()) if (this.#used[edge] === 1) yield id;
  }

  get(id: string): Counters | undefined {
    const edge = this.#numbers.get(id);
    if (edge === undefined || this.#used[edge] !== 1) return undefined;
    const at = edge * STEP;
    const value = (field: number) => this.#values[at + field] ?? 0;
    return {
      opened: value(0),
      sent: value(1),
      received: value(2),
      retransmits: value(3),
      failedNs: value(4),
      durationNs: value(5),
      rttUs: value(6),
      rtts: value(7),
      ends: ENDS.map((_, end) => value(FIRST_END + end)),
    };
  }

  #addOut(rows: RowTable, row: number): void {
    const direction = rows.direction(row);
    if (direction !== FLOW_OUT && direction !== FLOW_REFUSED && direction !== FLOW_PASSED) return;
    const source = rows.source(row);
    const service = rows.service(row);
    const endpoint = rows.endpoint(row);
    const routes = this.#routesOf(direction, source);
    const key = service * HALF + endpoint;
    let route = routes.get(key);
    if (route === undefined) {
      route = this.#route(direction, this.#unit(source), service, endpoint);
      routes.set(key, route);
    }
    const first = Math.floor(route / HALF);
    const second = route % HALF;
    if (direction === FLOW_REFUSED) {
      // The edge is there, and its refusals have an id of their own.
      this.#use(first);
      this.#addRefused(second, rows.long(row, ROW.opened.offset));
      return;
    }
    this.#addRow(rows, row, first);
    if (second !== NO_EDGE) this.#addRow(rows, row, second);
  }

  #addIn(rows: RowTable, row: number): void {
    if (rows.direction(row) !== FLOW_IN) return;
    const to = this.#unit(rows.source(row));
    const from = callerId(this.#labels.callerAddress(rows.remote(row)));
    this.#addRow(rows, row, this.#edge(edgeId(from, to, rows.port(row))));
  }

  #addRetired({ source, direction, service: name, workload, counters }: RetiredRow): void {
    const unit = this.#unit(source);
    const service = name === "" ? undefined : name;
    const call = edgeId(unit, serviceId(service));
    if (direction === "in") this.#addCounters(edgeId(formerCallerId(workload), unit, Number(name)), counters);
    else if (direction === "passed") this.#addCounters(edgeId(unit, outsideId(service)), counters);
    else if (direction === "out") this.#addCounters(call, counters);
    else {
      this.#use(this.#edge(call));
      this.#addRefused(this.#edge(refusedId(call, workload || "internal")), counters.opened);
    }
  }

  #addRefused(edge: number, count: number): void {
    const at = this.#use(edge);
    this.#add(at, count);
    this.#add(at + FIRST_END, count);
  }

  #route(direction: number, unit: string, service: number, endpoint: number): number {
    const name = this.#labels.service(service);
    if (direction === FLOW_PASSED) return this.#edge(edgeId(unit, outsideId(name))) * HALF + NO_EDGE;
    const to = serviceId(name);
    const call = edgeId(unit, to);
    if (direction === FLOW_REFUSED)
      return this.#edge(call) * HALF + this.#edge(refusedId(call, REASONS[endpoint] ?? "internal"));
    const at = this.#labels.endpoint(endpoint);
    return this.#edge(call) * HALF + (at ? this.#edge(edgeId(to, endpointId(at))) : NO_EDGE);
  }

  #addRow(rows: RowTable, row: number, edge: number): void {
    const at = this.#use(edge);
    for (let i = 0; i < OFFSETS.length; i++) this.#add(at + i, rows.long(row, OFFSETS[i] ?? 0));
    for (let end = 0; end < ENDS.length; end++)
      this.#add(at + FIRST_END + end, rows.long(row, ROW.ends.offset + end * 8));
  }

  #addCounters(id: string, counters: Counters): void {
    const { opened, sent, received, retransmits, failedNs, durationNs, rttUs, rtts, ends } = counters;
    const at = this.#use(this.#edge(id));
    const values = [opened, sent, received, retransmits, failedNs, durationNs, rttUs, rtts, ...ends];
    for (const [i, value] of values.entries()) this.#add(at + i, value);
  }

  #add(at: number, more: number): void {
    this.#values[at] = (this.#values[at] ?? 0) + more;
  }

  /** Where the edge's values begin. */
  #use(edge: number): number {
    this.#used[edge] = 1;
    return edge * STEP;
  }

  #edge(id: string): number {
    let edge = this.#numbers.get(id);
    if (edge === undefined) {
      edge = this.#ids.push(id) - 1;
      this.#numbers.set(id, edge);
      if (edge >= this.#used.length) {
        const used = new Uint8Array(this.#used.length * 2);
        used.set(this.#used);
        this.#used = used;
        const values = new Float64Array(this.#values.length * 2);
        values.set(this.#values);
        this.#values = values;
      }
    }
    return edge;
  }

  #routesOf(direction: number, source: number): Map<number, number> {
    let bySource = this.#routes.get(direction);
    if (!bySource) {
      bySource = new Map();
      this.#routes.set(direction, bySource);
    }
    let routes = bySource.get(source);
    if (!routes) {
      routes = new Map();
      bySource.set(source, routes);
    }
    return routes;
  }

  #unit(source: number): string {
    let unit = this.#units.get(source);
    if (unit === undefined) {
      unit = unitId(this.#sources.of(source));
      this.#units.set(source, unit);
    }
    return unit;
  }

  /** Forgets all when names have changed, or when most edges are gone. */
  #refresh(): void {
    const hasChanged = [...this.#units].some(([source, unit]) => unitId(this.#sources.of(source)) !== unit);
    const { revision } = this.#labels;
    let used = 0;
    for (const mark of this.#used) used += mark;
    if (revision === this.#revision && !hasChanged && this.#ids.length <= 1_000 + 2 * used) return;
    this.#revision = revision;
    this.#ids = [];
    this.#numbers = new Map();
    this.#routes = new Map();
    this.#units = new Map();
  }
}
