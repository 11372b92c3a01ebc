/**
 * Who may connect to the machine, and since when: the policies that the bench pushes, for each port and source address.
 * A connection is judged by every set of policies that may have governed while its connect() ran.
 */
import type { DemoInbound } from "../../src/demo/services.ts";
import type { Random } from "../../test/lab/random.ts";
import type { Instant } from "./ledger/validity.ts";

/** The machine's own addresses. */
export const MACHINE = ["172.31.0.1", "fd00:76::1"] as const;
/** The other end of the link: one host with many addresses. */
export const SOURCES = [
  ...[11, 12, 13, 14].map((host) => `172.31.0.${host}`),
  ...[11, 12].map((host) => `fd00:76::${host}`),
] as const;
/** Ports of the machine's services; the last one belongs to no service, so that no policy governs it. */
export const PORTS = [8081, 8082, 8083, 8099] as const;
const GOVERNED = PORTS.length - 1;

/** Of one port. */
interface Rule {
  strict: boolean;
  /** Indexes of sources. */
  denied: ReadonlySet<number>;
}

/** All rules at one time. */
interface State {
  rules: readonly Rule[];
  from: Instant;
  /** Not after that. */
  until: Instant;
}

export type Verdict = "admit" | "refuse" | "either";

export class AdmissionPlan {
  #rules: readonly Rule[] = PORTS.slice(0, GOVERNED).map((_, port) => ({
    strict: false,
    denied: new Set(SOURCES.flatMap((_, source) => ((source + port) % 2 === 0 ? [source] : []))),
  }));
  /** Oldest first; the last one was pushed last. */
  readonly #states: State[] = [];

  /** Gives one port other rules. */
  change(random: Random): void {
    const changed = random.below(GOVERNED);
    const strict = random.chance(0.2);
    const denied = new Set(SOURCES.flatMap((_, source) => (random.chance(0.5) ? [source] : [])));
    this.#rules = this.#rules.map((rule, port) => (port === changed ? { strict, denied } : rule));
  }

  inbound(): DemoInbound[] {
    return meshOf(this.#rules);
  }

  /** Of each port the contrary of what the plan says. */
  contrary(): DemoInbound[] {
    return meshOf(
      this.#rules.map(({ strict, denied }) => ({
        strict: false,
        denied: strict ? new Set() : new Set(SOURCES.keys().filter((source) => !denied.has(source))),
      })),
    );
  }

  /** Whether the plan lets a source in, both by index. */
  admits(source: number, port: number): boolean {
    return admitsBy(this.#rules, source, port);
  }

  /** At `at` the push of the rules began. */
  pushed(at: Instant): void {
    this.#states.push({ rules: this.#rules, from: at, until: Number.POSITIVE_INFINITY });
  }

  /** At `at` the tables that govern were seen to hold what was pushed last. */
  applied(at: Instant): void {
    for (const state of this.#states.slice(0, -1)) state.until = Math.min(state.until, at);
  }

  /** What the sets said that may have governed from `from` to `to`. */
  verdict(source: number, port: number, from: Instant, to: Instant): Verdict {
    const verdicts = new Set(
      this.#states
        .filter((state) => state.from <= to && from < state.until)
        .map(({ rules }) => (admitsBy(rules, source, port) ? "admit" : "refuse")),
    );
    const [only] = verdicts;
    return verdicts.size === 1 && only ? only : "either";
  }
}

function admitsBy(rules: readonly Rule[], source: number, port: number): boolean {
  const rule = rules[port];
  return rule === undefined || (!rule.strict && !rule.denied.has(source));
}

function meshOf(rules: readonly Rule[]): DemoInbound[] {
  return rules.map(({ strict, denied }, port) => ({
    port: PORTS[port] ?? 0,
    mtls: strict ? "strict" : "permissive",
    deny: [...denied].map((source) => {
      const address = SOURCES[source] ?? "";
      return `${address}/${address.includes(":") ? 128 : 32}`;
    }),
  }));
}
