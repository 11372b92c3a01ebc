/**
 * What readers may still hold is taken back in two steps: a grace period of the kernel, after which no program that
 * was running when it was unpublished runs any more; for what sockets remember, a quarantine behind it.
 */
import { membarrier } from "../../kernel/memory.ts";

/** Records unpublished within this time share one grace period, off the path of an update. */
const DELAY_MS = 200;

export class DeferredFree {
  #waiting: (() => void)[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** ExtentAllocator `release` when no program can hold what was unpublished before this call. */
  defer(release: () => void): void {
    this.#waiting.push(release);
    if (this.#timer) return;
    this.#timer = setTimeout(() => this.flush(), DELAY_MS);
    this.#timer.unref?.();
  }

  /** Waits for the grace period now. What is released may defer more, which waits for the next. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#waiting.length === 0) return;
    const released = this.#waiting;
    this.#waiting = [];
    membarrier();
    for (const release of released) release();
  }

  /** Releases nothing any more. */
  abandon(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#waiting = [];
  }

  close(): void {
    while (this.#waiting.length > 0) this.flush();
    clearTimeout(this.#timer);
  }
}
