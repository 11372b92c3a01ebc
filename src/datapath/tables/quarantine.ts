/**
 * Ids that nothing leads to any more but that a socket may still carry. An id may be used again after a term in quarantine,
 * once no socket carries it.
 */

/** Ids that one call looks at. */
const LOOKS = 64;

export class Quarantine {
  readonly #ms: number;
  readonly #idle: (id: number) => boolean;
  /** Id -> since when, in milliseconds of the monotonic clock. */
  #ids = new Map<number, number>();

  /** `idle` says whether no socket carries the id. */
  constructor(ms: number, idle: (id: number) => boolean) {
    this.#ms = ms;
    this.#idle = idle;
  }

  add(id: number): void {
    this.#ids.delete(id);
    this.#ids.set(id, performance.now());
  }

  /** Something leads to the id again. */
  remove(id: number): void {
    this.#ids.delete(id);
  }

  /**
   * Takes out ids that may be used again. One that a socket still carries stays for another term. At most `LOOKS` ids are
   * looked at, oldest first: the caller needs one id, and asks again when it needs the next.
   */
  expired(): number[] {
    const ready: number[] = [];
    if (this.#ids.size === 0) return ready;
    const now = performance.now();
    const busy: number[] = [];
    for (const [id, since] of this.#ids) {
      if (since > now - this.#ms || ready.length + busy.length === LOOKS) break;
      (this.#idle(id) ? ready : busy).push(id);
    }
    // Taken out after all were looked at: a look that throws loses no id.
    for (const id of [...ready, ...busy]) this.#ids.delete(id);
    for (const id of busy) this.#ids.set(id, now);
    return ready;
  }
}

/** Between an id's last look-up and the moment when the live counts know of it lies a part of one connect(). */
export const SOCKET_REST_MS = 10_000;
