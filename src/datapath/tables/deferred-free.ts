/**
 * Frees records in two steps: after a grace period of the kernel no program that was running when a record was unpublished
 * runs any more; ids that sockets may still carry then go into a quarantine.
 */
import { waitForGracePeriod } from "../../kernel/grace-period.ts";

/** Records unpublished within this time share one grace period, off the path of an update. */
const DELAY_MS = 200;
/** After a grace period that the kernel could not give, milliseconds. */
const RETRY_MS = 5_000;
/** What is released may defer more; nothing does so more often than this in a row. */
const CLOSING_ROUNDS = 8;

export class DeferredFree {
  readonly #report: (error: unknown) => void;
  readonly #wait: () => void;
  #waiting: (() => void)[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;

  /**
   * `report` gets what a release, or the wait itself, throws: the other releases go on, and what was to be released stays
   * in use until the next start reads the tables. `wait` returns after a grace period.
   */
  constructor(report: (error: unknown) => void, wait: () => void = waitForGracePeriod) {
    this.#report = report;
    this.#wait = wait;
  }

  /** Calls `release` when no program can hold what was unpublished before this call. */
  defer(release: () => void): void {
    this.#waiting.push(release);
    if (!this.#timer) this.#flushIn(DELAY_MS);
  }

  /** Waits for the grace period now. What is released may defer more, which waits for the next. */
  flush(): void {
    this.#stopTimer();
    if (this.#waiting.length === 0) return;
    try {
      this.#wait();
    } catch (error) {
      // Nothing may be written again yet: all of it waits for another try.
      this.#flushIn(RETRY_MS);
      this.#report(error);
      return;
    }
    const released = this.#waiting;
    this.#waiting = [];
    const errors: unknown[] = [];
    for (const release of released) {
      try {
        release();
      } catch (error) {
        errors.push(error);
      }
    }
    for (const error of errors) this.#report(error);
  }

  /** Drops what is waiting: whoever reads the tables next finds it by itself. */
  abandon(): void {
    this.#stopTimer();
    this.#waiting = [];
  }

  /** Releases what is waiting, as far as the kernel gives grace periods. */
  close(): void {
    for (let round = 0; round < CLOSING_ROUNDS && this.#waiting.length > 0; round++) this.flush();
    this.abandon();
  }

  #flushIn(milliseconds: number): void {
    this.#timer = setTimeout(() => this.flush(), milliseconds);
    this.#timer.unref?.();
  }

  #stopTimer(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }
}
