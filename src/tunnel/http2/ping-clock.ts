/**
 * Asks the connections of one interval in ten groups, so that the PINGs of a group leave together and are answered together. A
 * timer for each connection takes half as much CPU again.
 */
const GROUPS = 10;

class PingClock {
  readonly #groups = Array.from({ length: GROUPS }, () => new Set<() => void>());
  readonly #timer: ReturnType<typeof setInterval>;
  /** The group that was asked last: whoever is added to it waits for the whole interval. */
  #last = 0;

  constructor(every: number) {
    this.#timer = setInterval(() => {
      this.#last = (this.#last + 1) % GROUPS;
      const group = this.#newest;
      // One may end another, or add one that is not to be asked yet.
      for (const ask of [...group]) if (group.has(ask)) ask();
    }, every / GROUPS);
    this.#timer.unref();
  }

  get #newest(): Set<() => void> {
    return this.#groups[this.#last] as Set<() => void>;
  }

  get isIdle(): boolean {
    return this.#groups.every((group) => group.size === 0);
  }

  /** Gives what removes it. */
  add(ask: () => void): () => void {
    const group = this.#newest;
    group.add(ask);
    return () => group.delete(ask);
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

/** By interval. Each is stopped when its last connection leaves. */
const clocks = new Map<number, PingClock>();

/** Calls `ask` every so many milliseconds, the first time after nine tenths of that at least. Gives what ends it. */
export function pingEvery(every: number, ask: () => void): () => void {
  const clock = clocks.get(every) ?? new PingClock(every);
  clocks.set(every, clock);
  const remove = clock.add(ask);
  return () => {
    remove();
    if (!clock.isIdle || clocks.get(every) !== clock) return;
    clock.stop();
    clocks.delete(every);
  };
}
