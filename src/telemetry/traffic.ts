/**
 * The agent's part of counting: turns it on, updates rows every five seconds, keeps an hour of history, and names rows. The
 * kernel counts without the agent, so the agent may die at any moment.
 */
import { join } from "node:path";
import type { Tables } from "../datapath/tables/tables.ts";
import { codeOf, reasonOf } from "../errors/reason.ts";
import type { WorkloadIndex } from "../mesh/workload.ts";
import { Ageing } from "./ageing.ts";
import { Counting } from "./counters/counting.ts";
import { Flusher } from "./counters/flush.ts";
import { type Reading, readTraffic } from "./counters/reading.ts";
import { type Rows, readRowTables } from "./counters/row-table.ts";
import { Sources } from "./counters/sources.ts";
import { EdgeTotals } from "./edge-totals.ts";
import { historyOf, makeDocument, type ServiceState } from "./edges.ts";
import { type History, STEP } from "./history.ts";
import { readHistory, writeHistory } from "./history-file.ts";
import { Labels } from "./labels.ts";
import type { EdgeHistory, EdgesDocument, Machine } from "./model.ts";
import { Retirement } from "./retirement.ts";
import { type Sums, sumUp } from "./sums.ts";
import type { TunnelCounts } from "./tunnel-summary.ts";

/** Interval of flushes, milliseconds, as Istio's proxies report long connections. */
const FLUSH = 5_000;
/** Delay of the first flush after the tables were acquired, milliseconds. */
const BEGIN = 1_000;
/** Number of flushes between two writes of the history. */
const SAVE_EVERY = 12;
const NOT_COUNTED = "Connections are not counted: the setting traffic is off.";
const HISTORY_FILE = "traffic-history";

export interface TrafficOptions {
  tables: Tables;
  workloads: WorkloadIndex;
  machine: Machine;
  /** Whether connections are counted. */
  counts: boolean;
  /** Configured local ports, in addition to those of endpoints with the machine's addresses. */
  ports: readonly number[];
  /** The file of the history. */
  stateDir: string;
  service: ServiceState;
  /** The status of each tunnel process that runs. */
  tunnels(): readonly TunnelCounts[];
  /** Whether this version's programs run at the hooks. */
  attached(): boolean;
  warn(line: string): void;
}

/** All values of one moment. */
export interface Moment {
  reading: Reading;
  sums: Sums;
}

export class Traffic {
  readonly counting: Counting;
  readonly labels: Labels;
  readonly sources: Sources;
  readonly #options: TrafficOptions;
  /** Null until it is needed. */
  #flusher: Flusher | undefined | null = null;
  readonly #begin: ReturnType<typeof setTimeout>;
  readonly #retirement: Retirement;
  readonly #ageing: Ageing;
  readonly #history: History;
  readonly #totals: EdgeTotals;
  readonly #off: string[] = [];
  #counts: boolean;
  readonly #timer: ReturnType<typeof setInterval>;
  #rounds = 0;
  #trouble = "";

  /** Tables and maps stay the caller's, which must call `close` before it closes them. Throws KernelError. */
  constructor(options: TrafficOptions) {
    const { tables, workloads, stateDir, counts } = options;
    this.#options = options;
    this.counting = new Counting(tables.maps.traffic, tables.maps.served_ports);
    this.labels = new Labels(tables, workloads, true);
    this.sources = new Sources(tables.maps.source_names);
    this.#totals = new EdgeTotals(this.labels, this.sources);
    this.#retirement = new Retirement(tables.maps, this.labels);
    this.#ageing = new Ageing(tables.maps, this.#retirement);
    tables.mayReuse = this.#retirement.mayReuse;
    this.#counts = counts;
    this.counting.count(counts);
    this.#history = readHistory(join(stateDir, HISTORY_FILE));
    // Not now, because a hand-over waits for this call.
    this.#begin = setTimeout(() => this.#round(), BEGIN);
    this.#timer = setInterval(() => this.#round(), FLUSH);
    this.#timer.unref?.();
  }

  /** Brings the rows up to date and reads them. Throws KernelError. */
  read(): Moment {
    this.#flush();
    this.sources.refresh();
    const reading = readTraffic(this.#options.tables.maps);
    return { reading, sums: sumUp(reading, this.sources, this.labels) };
  }

  /** Brings the rows up to date and reads them for metrics. Throws KernelError. */
  readRows(): Rows {
    this.#flush();
    this.sources.refresh();
    return readRowTables(this.#options.tables.maps);
  }

  /** The map over the last `window` seconds. Throws KernelError. */
  document(window: number): EdgesDocument {
    const { machine, service, tunnels } = this.#options;
    return makeDocument({
      ...this.read(),
      history: this.#history,
      window,
      machine,
      service,
      tunnels: tunnels(),
      off: this.#counts ? this.#off : [NOT_COUNTED, ...this.#off],
    });
  }

  /** The history of an edge, also of a new one. "no-room": other edges took all histories. Throws KernelError. */
  history(edge: string): EdgeHistory | "unknown" | "no-room" {
    const known = historyOf(this.#history, edge, Date.now());
    if (known) return known;
    const sum = this.read().sums.edges.get(edge);
    if (!sum) return "unknown";
    return historyOf(this.#history, edge, Date.now(), sum.counters) ?? "no-room";
  }

  /** Sets whether new connections are counted. Connections that are counted already stay counted. */
  count(on: boolean): void {
    this.#counts = on;
    this.counting.count(on);
    this.#serve();
  }

  /** Ends this process's part; the kernel counts on. Never throws. */
  close(): void {
    clearInterval(this.#timer);
    clearTimeout(this.#begin);
    this.#options.tables.mayReuse = undefined;
    this.#save();
    this.#flusher?.close();
    this.#retirement.close();
    this.#ageing.close();
    this.counting.close();
  }

  #flush(): void {
    if (this.#flusher === null) this.#flusher = this.#openFlusher();
    this.#flusher?.flush(this.#options.attached());
  }

  #openFlusher(): Flusher | undefined {
    try {
      const flusher = Flusher.open(this.#options.tables.maps, this.counting);
      if (!flusher)
        this.#off.push(
          "This kernel (before 5.12) counts bytes and accepted connections when a connection ends, not while it lives.",
        );
      return flusher;
    } catch (error) {
      const consequence = "Live connections are counted at their end";
      this.#options.warn(`${consequence}: ${reasonOf(error)}`);
      // Without the verifier's log: the map shows this sentence.
      this.#off.push(
        `${consequence}: the kernel refuses to list them (${codeOf(error) ?? reasonOf(error)}). The agent's log has the error.`,
      );
      return undefined;
    }
  }

  #round(): void {
    try {
      this.#serve();
      if (this.#rounds++ % Math.round((STEP * 1000) / FLUSH) === 0) {
        const rows = this.readRows();
        this.#totals.take(rows, this.#options.tunnels());
        this.#history.record(this.#totals, Date.now());
        if (this.#ageing.isDue(rows, this.sources.count))
          this.#ageing.round(readTraffic(this.#options.tables.maps));
      } else this.#flush();
      if (this.#rounds % SAVE_EVERY === 0) this.#save();
      this.#trouble = "";
    } catch (error) {
      this.#complain(`traffic is not read: ${reasonOf(error)}`);
    }
  }

  /** Accepted connections are counted on the ports by which istiod knows this machine. */
  #serve(): void {
    const { workloads, machine, ports } = this.#options;
    this.counting.serve(this.#counts ? new Set([...ports, ...workloads.portsOf(machine.addresses)]) : []);
  }

  #save(): void {
    try {
      writeHistory(join(this.#options.stateDir, HISTORY_FILE), this.#history);
    } catch (error) {
      this.#complain(`the history of traffic is not written: ${reasonOf(error)}`);
    }
  }

  #complain(text: string): void {
    if (text !== this.#trouble) this.#options.warn(text);
    this.#trouble = text;
  }
}
