/**
 * Unpublished ids that a socket may still carry. An id may be used again after a time in quarantine, when no socket carries
 * it.
 */

/** Most ids that one call checks. */
const LOOKS = 64;

export class Quarantine {
  readonly #ms: number;
  readonly #idle: (id: number) => boolean;
  /** Id -> begin of its quarantine, milliseconds of the monotonic clock. */
  #ids = new Map<number, number>();

  /** `idle` returns true when no socket carries the id. */
  constructor(ms: number, idle: (id: number) => boolean) {
    this.#ms = ms;
    this.#idle = idle;
  }

  add(id: number): void {
    this.#ids.delete(id);
    this.#ids.set(id, performance.now());
  }

  /** Removes an id that is published again. */
  remove(id: number): void {
    this.#ids.delete(id);
  }

  /**
   * Removes and returns ids that may be used again. An id that a socket still carries stays for another term. Checks at most
   * `LOOKS` ids, oldest first, because the caller needs only one at a time.
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
    // Removed after all checks, so that a check that throws loses no id.
    for (const id of [...ready, ...busy]) this.#ids.delete(id);
    for (const id of busy) this.#ids.set(id, now);
    return ready;
  }
}

/** A connect() may have looked an id up without having counted it yet; the term covers that time. */
export const SOCKET_REST_MS = 10_000;
