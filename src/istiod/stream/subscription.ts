import { fits, sizeOf } from "./request.ts";
import type { ResourceType } from "./sink.ts";
import type { Answered } from "./status.ts";

/** A resource that the sink rejected. */
export interface Rejection {
  hash: number;
  reason: string;
  /** Milliseconds since the epoch. */
  since: number;
}

/** A resource that the sink holds, with istiod's version. */
export interface Versioned {
  hash: number;
  version: string;
}

/**
 * The state of one type: the resources in the sink, which outlive streams, and the subscription on the present
 * stream.
 */
export class Subscription {
  readonly type: ResourceType;
  readonly #held = new Map<string, number | Versioned>();
  /** What a request that names all of them would take. */
  #size = 0;
  /** They were too many for a request. Ends when half of it would do. */
  #crowded = false;
  /** Rejected resources by name. The sink may still hold an older version. */
  readonly rejected = new Map<string, Rejection>();

  /**
   * Whether this stream began with the versions that kmesh holds. Then istiod omits what is unchanged and lists what is gone;
   * else what its complete response lacks is gone.
   */
  announced = false;
  /** Whether this stream has subscribed to the type. Only then istiod watches it for this node. */
  watched = false;
  /** Names subscribed to (endpoints and routes). */
  readonly asked = new Set<string>();
  /** Names in `asked` that istiod has not answered and that the sink does not hold. */
  readonly unanswered = new Set<string>();
  /**
   * When names were last subscribed to, and when the last response came on this stream (0: none yet); monotonic
   * milliseconds.
   */
  askedAt = 0;
  answeredAt = 0;

  /** The acknowledgements; undefined before the first one. */
  answered: Answered | undefined;

  /** Since the start of the process. */
  readonly counts = { responses: 0, bytes: 0, unchanged: 0, changed: 0, removed: 0, refused: 0 };

  constructor(type: ResourceType) {
    this.type = type;
  }

  /** A new stream begins: no response has come on it yet. */
  restart(now: number): void {
    this.watched = false;
    this.announced = false;
    this.askedAt = now;
    this.answeredAt = 0;
    this.unanswered.clear();
    for (const name of this.asked) if (!this.#held.has(name)) this.unanswered.add(name);
  }

  /** Counts an ACK or a NACK of a response with this version. */
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

  /**
   * The hash of the bytes that the sink holds, by name, with the version unless it is "" (istiod's mostly are), or there are too
   * many to tell istiod.
   */
  get held(): ReadonlyMap<string, number | Versioned> {
    return this.#held;
  }

  /** Whether a request can name all that is held. */
  get fits(): boolean {
    return !this.#crowded;
  }

  /** The sink holds these bytes of a resource now. */
  hold(name: string, hash: number, version: string): void {
    const kept = this.#crowded ? "" : version;
    this.#size += sizeOf(name, kept) - this.#sizeOf(name);
    this.#held.set(name, kept === "" ? hash : { hash, version: kept });
    if (!this.#crowded && !fits(this.#size)) this.#dropVersions();
  }

  #sizeOf(name: string): number {
    const held = this.#held.get(name);
    if (held === undefined) return 0;
    return sizeOf(name, typeof held === "number" ? "" : held.version);
  }

  /** Versions that no request will hold. */
  #dropVersions(): void {
    this.#crowded = true;
    this.#size = 0;
    for (const [name, held] of this.#held) {
      if (typeof held !== "number") this.#held.set(name, held.hash);
      this.#size += sizeOf(name, "");
    }
  }

  /** The hash of the held bytes of a resource. */
  hashOf(name: string): number | undefined {
    const held = this.#held.get(name);
    return typeof held === "object" ? held.hash : held;
  }

  hasVersion(name: string): boolean {
    return typeof this.#held.get(name) === "object";
  }

  /** Versions held by name, for the first request of a new stream (initial_resource_versions). */
  known(): Map<string, string> {
    const known = new Map<string, string>();
    for (const [name, held] of this.#held) known.set(name, typeof held === "number" ? "" : held.version);
    return known;
  }

  /** Removes a name. Gives whether the sink knows it: as held, or as a rejected resource whose content is unknown. */
  forget(name: string): boolean {
    const rejected = this.rejected.delete(name);
    this.unanswered.delete(name);
    this.#size -= this.#sizeOf(name);
    if (this.#crowded && fits(this.#size * 2)) this.#crowded = false;
    return this.#held.delete(name) || rejected;
  }
}
