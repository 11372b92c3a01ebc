/** Something that holds bytes for a reader, and can be given up. */
export interface Holder {
  /** Bytes that it holds now. */
  readonly held: number;
  /** Drops them, and resets the stream. */
  shed(): void;
}

/**
 * Bytes that all connections together hold for readers that do not read. When it is used up, the streams that hold the most
 * are reset until a quarter of it is free: they pay, and no other stream waits for them.
 */
export class Budget {
  readonly #limit: number;
  readonly #onShed: (bytes: number) => void;
  readonly #holders = new Set<Holder>();
  #used = 0;
  #shedding = false;

  /** `limit` in bytes. `onShed` is called for each stream that is reset, with what it held. */
  constructor(limit: number, onShed: (bytes: number) => void = () => {}) {
    this.#limit = limit;
    this.#onShed = onShed;
  }

  get used(): number {
    return this.#used;
  }

  /** Whether windows may grow: less than half is used. */
  get ample(): boolean {
    return this.#used < this.#limit / 2;
  }

  /** `holder` holds so many bytes more. It may be reset by this call. */
  take(holder: Holder, bytes: number): void {
    this.#used += bytes;
    this.#holders.add(holder);
    if (this.#used > this.#limit && !this.#shedding) this.#shed();
  }

  /** `holder` holds so many bytes less. */
  release(holder: Holder, bytes: number): void {
    this.#used -= bytes;
    if (holder.held <= 0) this.#holders.delete(holder);
  }

  #shed(): void {
    this.#shedding = true;
    try {
      for (const holder of [...this.#holders].sort((a, b) => b.held - a.held)) {
        if (this.#used <= (this.#limit * 3) / 4) break;
        this.#onShed(holder.held);
        holder.shed();
        this.#holders.delete(holder);
      }
    } finally {
      this.#shedding = false;
    }
  }
}
