/**
 * Decides when a push is complete. istiod sends one push as several responses without marking the last one, and sends
 * the endpoints of a new cluster only after kmesh has subscribed to them. A commit that is too early would publish
 * services without endpoints, or services that point to removed clusters.
 */
import type { ResourceType } from "./sink.ts";
import type { Subscription } from "./subscription.ts";
import { REQUIRED } from "./types.ts";

/** Times that bound a push, milliseconds. */
export interface PushTimes {
  /** A push is complete when no response came for so long. */
  quiet: number;
  /** While responses keep coming, a push that lacks nothing is committed after so long. */
  longest: number;
  /** How long to wait for answers to new subscriptions, and for listeners after a cluster was removed. */
  answer: number;
  /** How long the first snapshot waits for the first response with endpoints or routes. */
  firstAnswer: number;
}

export const PUSH_TIMES: PushTimes = { quiet: 20, longest: 1_000, answer: 5_000, firstAnswer: 30_000 };

type Subscriptions = Readonly<Record<ResourceType, Subscription>>;

/** The changes since the last commit, and the responses that they still need. Times are monotonic milliseconds. */
export class Push {
  readonly #times: PushTimes;
  readonly #required: readonly ResourceType[];
  readonly #changed = new Set<ResourceType>();
  /** Types whose next response belongs to this push, and the time since which it is expected. */
  readonly #expected = new Map<ResourceType, number>();
  version = "";
  openedAt = 0;
  #lastAt = 0;

  /** The first snapshot needs a response of each type in `required`. */
  constructor(times: PushTimes = PUSH_TIMES, required = REQUIRED["kernel-native"]) {
    this.#times = times;
    this.#required = required;
  }

  get open(): boolean {
    return this.#changed.size > 0;
  }

  /** A response of `type` came. It satisfies the expectation of that type. */
  received(type: ResourceType, version: string, now: number): void {
    this.#expected.delete(type);
    this.version = version;
    this.#lastAt = now;
  }

  /** A resource of this type was stored or removed. */
  change(type: ResourceType, now: number): void {
    if (!this.open) this.openedAt = now;
    this.#changed.add(type);
  }

  /** The push needs another response of this type. */
  expect(type: ResourceType, now: number): void {
    this.#expected.set(type, now);
  }

  unexpect(type: ResourceType): void {
    this.#expected.delete(type);
  }

  /** A new stream begins: the time limits of expected responses start again. */
  restart(now: number): void {
    for (const type of this.#expected.keys()) this.#expected.set(type, now);
  }

  /** The push was committed: nothing is pending. */
  clear(): void {
    this.#changed.clear();
    this.#expected.clear();
  }

  /**
   * The time until which the push must wait for missing responses: 0 when nothing is missing, Infinity when it can't
   * be committed without them. `first` is the first snapshot of this process. It replaces the tables of an earlier
   * process in the kernel, so it needs whole types and waits longer.
   */
  lacksUntil(subscriptions: Subscriptions, first: boolean): number {
    const { answer, firstAnswer } = this.#times;
    let until = 0;
    for (const type of ["endpoints", "route"] as const) {
      const { unanswered, askedAt, answeredAt } = subscriptions[type];
      if (unanswered.size === 0) continue;
      if (!first) until = Math.max(until, askedAt + answer);
      else if (answeredAt === 0) until = Math.max(until, askedAt + firstAnswer);
      else until = Math.max(until, Math.max(askedAt, answeredAt) + answer);
    }
    for (const since of this.#expected.values()) until = Math.max(until, since + answer);
    if (!first) return until;
    if (this.#required.some((type) => subscriptions[type].answeredAt === 0)) return Infinity;
    // istiod sends no name table when it has no names.
    return subscriptions.names.answeredAt === 0 ? Math.max(until, this.#lastAt + answer) : until;
  }

  /** When the push can be committed, if no further response comes. */
  dueAt(subscriptions: Subscriptions, first: boolean): number {
    const lacks = this.lacksUntil(subscriptions, first);
    if (lacks === 0 && !first && this.#changed.size === 1 && this.#changed.has("endpoints")) return 0;
    const quiet = this.#lastAt + this.#times.quiet;
    return Math.max(lacks, first ? quiet : Math.min(quiet, this.openedAt + this.#times.longest));
  }
}
