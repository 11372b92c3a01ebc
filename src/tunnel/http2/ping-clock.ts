/**
 * Asks the connections of one interval in ten groups, so that the PINGs of a group leave together and are answered together. A
 * timer for each connection takes half as much CPU again.
 */
const GROUPS = 10;

/** Who is asked. */
export interface Asked {
  ask(): void;
}

class PingClock {
  readonly #groups = Array.from({ length: GROUPS }, () => new Set<Asked>());
  readonly #timer: ReturnType<typeof setInterval>;
  /** The group that was asked last: whoever is added to it waits for the whole interval. */
  #last = 0;

  constructor(every: number) {
    this.#timer = setInterval(() => {
      this.#last = (this.#last + 1) % GROUPS;
      const group = this.#newest;
      // One may end another, or add one that is not to be asked yet.
      for (const each of [...group]) if (group.has(each)) each.ask();
    }, every / GROUPS);
    this.#timer.unref();
  }

  get #newest(): Set<Asked> {
    return this.#groups[this.#last] as Set<Asked>;
  }

  get isIdle(): boolean {
    return this.#groups.every((group) => group.size === 0);
  }

  add(asked: Asked): void {
    this.#newest.add(asked);
  }

  remove(asked: Asked): void {
    for (const group of this.#groups) group.delete(asked);
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

/** By interval. Each is stopped when its last connection leaves. */
const clocks = new Map<number, PingClock>();

/** Asks every so many milliseconds, the first time after nine tenths of that at least, until askNoMore. */
export function askEvery(every: number, asked: Asked): void {
  const clock = clocks.get(every) ?? new PingClock(every);
  clocks.set(every, clock);
  clock.add(asked);
}

export function askNoMore(every: number, asked: Asked): void {
  const clock = clocks.get(every);
  clock?.remove(asked);
  if (!clock?.isIdle) return;
  clock.stop();
  clocks.delete(every);
}
