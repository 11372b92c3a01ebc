/** Durations by size, each to within 5 %. */
const STEPS = 16;
const BUCKETS = 40 * STEPS;

export class Histogram {
  readonly #counts = new Uint32Array(BUCKETS);
  total = 0;

  add(nanoseconds: number): void {
    const bucket = Math.min(Math.floor(Math.log2(Math.max(nanoseconds, 1)) * STEPS), BUCKETS - 1);
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + 1;
    this.total++;
  }

  /** What `share` (0 to 1) of the durations stay below, ns; NaN when there are none. */
  quantile(share: number): number {
    let left = this.total * share;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      left -= this.#counts[bucket] ?? 0;
      if (left <= 0 && this.total > 0) return 2 ** ((bucket + 1) / STEPS);
    }
    return Number.NaN;
  }
}
