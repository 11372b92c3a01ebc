import type { ResourceType } from "./sink.ts";
import type { Answered } from "./status.ts";

/** Bytes that the sink refused. */
export interface Rejection {
  hash: bigint;
  reason: string;
  /** Milliseconds since the epoch. */
  since: number;
}

/** One type: what the sink holds of it, which outlives streams, and where the present stream is with it. */
export class Subscription {
  readonly type: ResourceType;
  /** By name, a hash of the bytes that the sink holds. */
  readonly held = new Map<string, bigint>();
  /** By name, what was refused; an older version may still be held. */
  readonly rejected = new Map<string, Rejection>();
  /** By name, versions other than "" (istiod's are all empty). */
  readonly versions = new Map<string, string>();

  /** Whether this stream asked for the type at all: istiod watches it for us from then on. */
  watched = false;
  /** Names subscribed to (endpoints and routes). */
  readonly asked = new Set<string>();
  /** Those of them without any answer since they were asked for, and not held either. */
  readonly unanswered = new Set<string>();
  /** When a first answer was last asked for, and when a response last came on this stream (0: none yet); ms, monotonic. */
  askedAt = 0;
  answeredAt = 0;

  /** How responses were answered; absent before the first. */
  answered: Answered | undefined;

  /** Since the start of the process. */
  readonly counts = { responses: 0, bytes: 0, unchanged: 0, changed: 0, removed: 0, refused: 0 };

  constructor(type: ResourceType) {
    this.type = type;
  }

  /** A new stream begins: nothing is answered on it yet. */
  restart(now: number): void {
    this.watched = false;
    this.askedAt = now;
    this.answeredAt = 0;
    this.unanswered.clear();
    for (const name of this.asked) if (!this.held.has(name)) this.unanswered.add(name);
  }

  /** A response of this version was acknowledged, or not. */
  answer(version: string, acknowledged: boolean, now = Date.now()): void {
    const { acks = 0, nacks = 0, lastNack } = this.answered ?? {};
    this.answered = {
      version,
      at: now,
      acks: acks + (acknowledged ? 1 : 0),
      nacks: nacks + (acknowledged ? 0 : 1),
      ...(acknowledged ? (lastNack ? { lastNack } : {}) : { lastNack: { version, at: now } }),
    };
  }

  /** Names to the versions held, as a reconnecting client tells them. */
  known(): Map<string, string> {
    const known = new Map<string, string>();
    for (const name of this.held.keys()) known.set(name, this.versions.get(name) ?? "");
    return known;
  }

  /** Forgets a name; gives whether the sink held it. */
  forget(name: string): boolean {
    this.rejected.delete(name);
    this.versions.delete(name);
    this.unanswered.delete(name);
    return this.held.delete(name);
  }
}
