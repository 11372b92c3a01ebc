/** One run of the bench: quiet, then event after event, each followed by a check of everything. */

import { readFileSync, truncateSync } from "node:fs";
import { reasonOf } from "../../src/errors/reason.ts";
import type { Mode } from "../../src/istiod/stream/types.ts";
import { sleep } from "../../test/lab/process.ts";
import { Random } from "../../test/lab/random.ts";
import { AdmissionBook, type AdmissionSums, refusalsOf } from "./admission.ts";
import type { Builds } from "./builds.ts";
import { monotonic } from "./clock.ts";
import { type Pace, play } from "./events.ts";
import { Book, type Sums } from "./ledger/book.ts";
import { Histogram } from "./ledger/histogram.ts";
import { readKernelCounts } from "./ledger/kernel-counts.ts";
import { MadeLedger, TakenLedger } from "./ledger/records.ts";
import { Validity } from "./ledger/validity.ts";
import { hostOf, Plan } from "./plan.ts";
import type { EventKind, ScheduledEvent } from "./schedule.ts";
import { schedule } from "./schedule.ts";
import { type LoadOptions, Stage } from "./stage.ts";

export interface RunOptions {
  seed: number;
  events: number;
  /** Minutes under load before the first event, in which nothing happens. */
  soak: number;
  kinds: readonly EventKind[];
  /** Misroutes, admits and refuses wrongly, and expects a wrong address of a name, on purpose: the report must show all. */
  misroute: boolean;
  builds: Builds;
  /** That the agent begins in. From dual-engine on, the mode changes as well. */
  mode: Mode;
  load: LoadOptions;
  /** A folder that gets the logs of all processes and the status of each tunnel at the end. */
  logs?: string;
  pace: Pace & {
    /** Without any event at the beginning, ms. */
    quiet: number;
    /** Between an event and the check after it, ms. */
    after: number;
  };
  progress(line: string): void;
}

/** How long connect() took, in a time of one kind. */
export interface ConnectTimes {
  connections: number;
  /** Microseconds. */
  p50: number;
  p99: number;
  /** Longer than three times the quiet p99. */
  slow: number;
}

/** What happened to connections through the tunnel in events of one kind. */
export interface TunnelTimes {
  /** Short ones, and the time to their answers, microseconds. */
  connections: number;
  p50: number;
  p99: number;
  /** Connections of a tunnel that was killed. */
  cut: number;
  /** All others that failed or were cut, of the tunnel or not. */
  failed: number;
  wrongIdentity: number;
}

export interface KindReport {
  events: number;
  worstGap: number;
  tunnel: TunnelTimes;
  service: ConnectTimes;
  /** Connections to no service, made by the same process in the same time. */
  direct: ConnectTimes;
}

export interface Report extends Sums {
  seed: number;
  events: number;
  /** Long connections open at the end, before they were closed. */
  open: number;
  /** Events that failed, or after which the agent did not get in sync again. */
  stuck: number;
  /** Map writes of starts after which nothing had changed. */
  unneededWrites: number;
  /** Queries for mesh names by a resolver that never asks twice, and those that got no answer or a wrong one. */
  lookups: number;
  failedLookups: number;
  /** Connections to the machine. */
  admission: AdmissionSums;
  quiet: KindReport;
  /** Resident memory of each process, KiB, at each minute of the soak. */
  memory: Record<string, number[]>;
  kinds: Partial<Record<EventKind, KindReport>>;
  milliseconds: number;
  complaints: string[];
  /** What could not be removed. */
  left: string[];
}

/** How long the misroute on purpose lasts, ms: one of 17 connections through the tunnel goes to an impostor. */
const MISROUTED = 1_000;
/** Connections that were replaced at each check. */
const CHURN = 20;

/** Runs it all in this process's namespaces, which must be its own, and cleans up however it ends. */
export async function runContinuity(options: RunOptions): Promise<Report> {
  const stage = new Stage(
    (identities) => {
      const plan = new Plan(identities);
      return { plan, validity: new Validity(plan.endpoints.map(({ service }) => service)) };
    },
    options.builds,
    options.mode,
  );
  const { plan, validity } = stage;
  const run = new Run(options, stage, plan, validity);
  const stop = () => {
    void stage.remove().finally(() => process.exit(1));
  };
  process.once("SIGINT", stop).once("SIGTERM", stop);
  let report: Report;
  try {
    report = await run.play();
  } finally {
    process.off("SIGINT", stop).off("SIGTERM", stop);
    if (options.logs !== undefined) stage.keepLogs(options.logs);
    const left = await stage.remove();
    run.left.push(...left);
  }
  return report;
}

/** Times of one kind of event. */
class Times {
  readonly service = new Histogram();
  readonly direct = new Histogram();
  readonly tunnel = new Histogram();
  slow = { service: 0, direct: 0 };
  cut = 0;
  failed = 0;
  wrongIdentity = 0;
  events = 0;
  worstGap = 0;

  report(): KindReport {
    const of = (kind: "service" | "direct"): ConnectTimes => ({
      connections: this[kind].total,
      p50: this[kind].quantile(0.5) / 1000,
      p99: this[kind].quantile(0.99) / 1000,
      slow: this.slow[kind],
    });
    const { events, worstGap, cut, failed, wrongIdentity, tunnel } = this;
    const times = {
      connections: tunnel.total,
      p50: tunnel.quantile(0.5) / 1000,
      p99: tunnel.quantile(0.99) / 1000,
    };
    return {
      events,
      worstGap,
      tunnel: { ...times, cut, failed, wrongIdentity },
      service: of("service"),
      direct: of("direct"),
    };
  }
}

class Run {
  readonly left: string[] = [];
  readonly #options: RunOptions;
  readonly #stage: Stage;
  readonly #plan: Plan;
  readonly #book: Book;
  readonly #admission: AdmissionBook;
  readonly #quiet = new Times();
  readonly #kinds = new Map<EventKind, Times>();
  #slowFrom = { service: Number.POSITIVE_INFINITY, direct: Number.POSITIVE_INFINITY };
  readonly #memory: Record<string, number[]> = {};
  #stuck = 0;
  #unneededWrites = 0;

  constructor(options: RunOptions, stage: Stage, plan: Plan, validity: Validity) {
    this.#options = options;
    this.#stage = stage;
    this.#plan = plan;
    const { services, endpoints } = plan;
    this.#book = new Book(
      {
        services,
        endpoints,
        refuses: (service) => plan.refuses(service),
        fails: (service) => plan.fails(service),
        tunnelled: (service) => plan.tunnelled(service),
        impostor: (service) => plan.impostor(service),
      },
      validity,
    );
    this.#admission = new AdmissionBook(plan.admission, (text) => this.#book.complain(text));
  }

  async play(): Promise<Report> {
    const { seed, events, kinds, load, progress } = this.#options;
    const began = performance.now();
    const random = new Random(seed ^ 0x5eed);
    await this.#stage.build();
    // On purpose wrong: the address of another service.
    const foreign = this.#options.misroute ? [`${hostOf("closed")}:A=10.96.1.1`] : [];
    await this.#stage.startLoad(load, [...this.#plan.lookups(), ...foreign]);
    await this.#stage.go();
    await this.#measureQuiet();
    progress(`quiet: ${this.#tell()}`);
    await this.#soak();
    for (const [i, event] of schedule(seed, events, kinds).entries()) {
      const line = await this.#playOne(event, random);
      progress(`${i + 1}/${events} ${event.kind}: ${line}`);
    }
    if (this.#options.misroute) {
      await this.#stage.misroute();
      await sleep(MISROUTED);
      // And a crash that the judge does not hear of.
      await this.#stage.tunnels.crash("apps");
    }
    const { open } = this.#book;
    const lookups = await this.#stage.endLoad();
    for (const [what, times] of Object.entries(lookups.wrong))
      this.#book.complain(`lookup, ${times} times: ${what}`);
    this.#check();
    progress(`all connections closed: ${this.#tell()}`);
    return {
      seed,
      events,
      ...this.#book.sums,
      open,
      stuck: this.#stuck,
      unneededWrites: this.#unneededWrites,
      lookups: lookups.asked,
      failedLookups: lookups.asked - lookups.right,
      admission: this.#admission.sums,
      quiet: this.#quiet.report(),
      memory: this.#memory,
      kinds: Object.fromEntries([...this.#kinds].map(([kind, times]) => [kind, times.report()])),
      milliseconds: performance.now() - began,
      complaints: this.#book.complaints,
      left: this.left,
    };
  }

  /** What connections cost when nothing happens; the second half is measured by the first. */
  async #measureQuiet(): Promise<void> {
    const { pace } = this.#options;
    const first = new Times();
    await sleep(pace.quiet / 2);
    await this.#pauseAndCheck(() => first);
    this.#slowFrom = {
      service: 3 * first.service.quantile(0.99),
      direct: 3 * first.direct.quantile(0.99),
    };
    this.#quiet.events = 1;
    await sleep(pace.quiet / 2);
    await this.#pauseAndCheck(() => this.#quiet);
  }

  /** Load and nothing else: who keeps what is over grows. */
  async #soak(): Promise<void> {
    const { soak, progress } = this.#options;
    for (let minute = 0; soak > 0 && minute <= soak; minute++) {
      if (minute > 0) {
        await sleep(60_000);
        await this.#stage.churn(CHURN);
        await this.#pauseAndCheck(() => undefined);
      }
      const now = this.#stage.memory();
      for (const [name, kilobytes] of Object.entries(now)) {
        const row = this.#memory[name] ?? [];
        row.push(kilobytes);
        this.#memory[name] = row;
      }
      const text = Object.entries(now).map(
        ([name, kilobytes]) => `${name} ${Math.round(kilobytes / 1024)} MB`,
      );
      progress(`minute ${minute} of ${soak}: ${text.join(", ")}; ${this.#tell()}`);
    }
  }

  async #playOne(event: ScheduledEvent, random: Random): Promise<string> {
    const { pace } = this.#options;
    const times = this.#timesOf(event.kind);
    times.events++;
    const before = { ...this.#book.sums };
    let from = monotonic();
    let gap = Number.NaN;
    try {
      // A change that the agent is there for, too.
      if (random.chance(0.5)) {
        this.#plan.change(random);
        await this.#stage.push();
        await this.#stage.inSync();
      }
      await this.#stage.churn(CHURN);
      from = monotonic();
      const outcome = await play(this.#stage, event, pace);
      gap = outcome.gap;
      if (outcome.crash) this.#book.crashed(outcome.crash);
      times.worstGap = Math.max(times.worstGap, gap);
      if (outcome.writes) {
        this.#unneededWrites += outcome.writes;
        const written = outcome.written?.join("; ") ?? "";
        this.#book.complain(
          `${event.kind}: ${outcome.writes} map writes though nothing had changed ${written}`,
        );
      }
    } catch (error) {
      this.#stuck++;
      this.#book.complain(`${event.kind}: ${reasonOf(error)}`);
    }
    const to = monotonic();
    await sleep(pace.after);
    await this.#pauseAndCheck((began) => (from <= began && began <= to ? times : undefined));
    const { made, tunnelled, cut, failed, wrongIdentity } = this.#book.sums;
    times.cut += cut - before.cut;
    times.failed += failed - before.failed;
    times.wrongIdentity += wrongIdentity - before.wrongIdentity;
    const through = `${tunnelled - before.tunnelled} of them by the tunnel`;
    const lost = cut > before.cut ? `, ${cut - before.cut} lost with a tunnel` : "";
    return `gap ${Math.round(gap)} ms; ${made - before.made} connections, ${through}${lost}; ${this.#tell()}`;
  }

  async #pauseAndCheck(timesAt: (began: number) => Times | undefined): Promise<void> {
    await this.#stage.pause();
    this.#check(timesAt);
    await this.#stage.go();
  }

  #check(timesAt: (began: number) => Times | undefined = () => undefined): void {
    const made = this.#stage.madeFiles.map((file) => new MadeLedger(takeFile(file)));
    const taken = this.#stage.takenFiles.map((file) => new TakenLedger(takeFile(file)));
    this.#book.take(made, taken, (kind, began, time) => {
      const times = timesAt(began);
      if (!times) return;
      times[kind].add(time);
      if (kind !== "tunnel" && time > this.#slowFrom[kind]) times.slow[kind]++;
    });
    const counts = readKernelCounts(this.#stage.bpffs);
    this.#book.compare(counts);
    this.#book.compareAccepted(counts, this.#stage.admission.accepted);
    this.#admission.take(takeFile(this.#stage.admission.ledger));
    this.#book.counter("refusals of peers", refusalsOf(this.#stage.bpffs), this.#admission.sums.refused);
  }

  #timesOf(kind: EventKind): Times {
    const times = this.#kinds.get(kind) ?? new Times();
    this.#kinds.set(kind, times);
    return times;
  }

  /** What is wrong so far. */
  #tell(): string {
    const { failed, misrouted, counterErrors, ledgerErrors, wrongIdentity } = this.#book.sums;
    const { wronglyAdmitted, wronglyRefused, failed: lost } = this.#admission.sums;
    const others = [
      ...(wrongIdentity > 0 ? [`${wrongIdentity} of a wrong identity`] : []),
      ...(wronglyAdmitted > 0 ? [`${wronglyAdmitted} wrongly admitted`] : []),
      ...(wronglyRefused > 0 ? [`${wronglyRefused} wrongly refused`] : []),
      ...(lost > 0 ? [`${lost} to the machine failed`] : []),
      ...(ledgerErrors > 0 ? [`${ledgerErrors} ledger errors`] : []),
      ...(this.#stuck > 0 ? [`${this.#stuck} stuck`] : []),
      ...(this.#unneededWrites > 0 ? [`${this.#unneededWrites} unneeded writes`] : []),
    ];
    return [`${failed} failed`, `${misrouted} misrouted`, `${counterErrors} counter errors`, ...others].join(
      ", ",
    );
  }
}

/** What was written into the file since the last time. Nobody may be writing. */
function takeFile(path: string): Uint8Array {
  const bytes = readFileSync(path);
  truncateSync(path, 0);
  // In memory of its own, and so aligned.
  return new Uint8Array(bytes);
}
