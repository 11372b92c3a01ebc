/**
 * Ids that nothing leads to any more but that a socket may still carry: they are used again only when they have
 * rested for a while and nobody counts on them.
 */
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
   * Takes out the ids that may be used again. One that is still carried rests anew: however many there are, each is
   * looked at once in that time.
   */
  expired(): number[] {
    const ready: number[] = [];
    if (this.#ids.size === 0) return ready;
    const now = performance.now();
    const busy: number[] = [];
    for (const [id, since] of this.#ids) {
      if (since > now - this.#ms) break;
      this.#ids.delete(id);
      (this.#idle(id) ? ready : busy).push(id);
    }
    for (const id of busy) this.#ids.set(id, now);
    return ready;
  }
}

/** Between an id's last look-up and the moment when the live counts know of it lies a part of one connect(). */
export const SOCKET_REST_MS = 10_000;
