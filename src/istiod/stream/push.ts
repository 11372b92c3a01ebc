/**
 * When a push is complete. istiod sends one push as several responses without saying which is the last, and the
 * endpoints of a new cluster only after they were asked for. Committing early would leave services without
 * endpoints, or pointing to clusters that are gone.
 */
import type { ResourceType } from "./sink.ts";
import type { Subscription } from "./subscription.ts";

/** Times that bound a push, milliseconds. */
export interface PushTimes {
  /** A push ends when nothing came for so long. */
  quiet: number;
  /** Without a quiet moment it is committed at the first one that is consistent after so long. */
  longest: number;
  /** How long answers to new subscriptions, and the listeners after a cluster's removal, are waited for. */
  answer: number;
  /** How long the first snapshot waits for the first endpoints or routes at all. */
  firstAnswer: number;
}

export const PUSH_TIMES: PushTimes = { quiet: 20, longest: 1_000, answer: 5_000, firstAnswer: 30_000 };

type Subscriptions = Readonly<Record<ResourceType, Subscription>>;

/** What was stored since the last commit, and what it still waits for. Times are monotonic milliseconds. */
export class Push {
  readonly #times: PushTimes;
  readonly #changed = new Set<ResourceType>();
  /** Types whose next response belongs to this push, and since when it is waited for. */
  readonly #expected = new Map<ResourceType, number>();
  version = "";
  openedAt = 0;
  #lastAt = 0;

  constructor(times: PushTimes = PUSH_TIMES) {
    this.#times = times;
  }

  get open(): boolean {
    return this.#changed.size > 0;
  }

  /** A response of `type` came; it answers what was expected of that type. */
  received(type: ResourceType, version: string, now: number): void {
    this.#expected.delete(type);
    this.version = version;
    this.#lastAt = now;
  }

  /** Something of this type was stored or removed. */
  change(type: ResourceType, now: number): void {
    if (!this.open) this.openedAt = now;
    this.#changed.add(type);
  }

  /** The push is not complete without a further response of this type. */
  expect(type: ResourceType, now: number): void {
    this.#expected.set(type, now);
  }

  unexpect(type: ResourceType): void {
    this.#expected.delete(type);
  }

  /** A new stream begins: what was expected has its whole time again. */
  restart(now: number): void {
    for (const type of this.#expected.keys()) this.#expected.set(type, now);
  }

  /** It was committed: nothing is pending. */
  clear(): void {
    this.#changed.clear();
    this.#expected.clear();
  }

  /**
   * Until when the push must wait for something that it lacks: 0 when it lacks nothing, Infinity when it can't do
   * without. `first` is the first snapshot of this process: it replaces what an earlier process left in the
   * kernel, so it must have all clusters and listeners, and patience.
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
    if (subscriptions.cluster.answeredAt === 0 || subscriptions.listener.answeredAt === 0) return Infinity;
    // istiod sends no names when it has none.
    return subscriptions.names.answeredAt === 0 ? Math.max(until, this.#lastAt + answer) : until;
  }

  /** The moment from which it can be committed, if nothing more comes. */
  dueAt(subscriptions: Subscriptions, first: boolean): number {
    const lacks = this.lacksUntil(subscriptions, first);
    if (lacks === 0 && !first && this.#changed.size === 1 && this.#changed.has("endpoints")) return 0;
    const quiet = this.#lastAt + this.#times.quiet;
    return Math.max(lacks, first ? quiet : Math.min(quiet, this.openedAt + this.#times.longest));
  }
}
