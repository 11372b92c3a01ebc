/**
 * Frees records in two steps. After an RCU grace period no program can still read an unpublished record. Ids that sockets
 * may still carry then go into quarantine.
 */
import { waitForGracePeriod } from "../../kernel/grace-period.ts";

/** Records unpublished within this time share one grace period, off the path of an update. */
const DELAY_MS = 200;
/** Pause after a failed grace period, milliseconds. */
const RETRY_MS = 5_000;
/** Longest chain of releases that defer further releases. */
const CLOSING_ROUNDS = 8;

export class DeferredFree {
  readonly #report: (error: unknown) => void;
  readonly #wait: () => void;
  #waiting: (() => void)[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;

  /**
   * `report` gets errors of a release or of the wait. Other releases continue, and the failed one stays in use until the next
   * start reads the tables. `wait` returns after a grace period.
   */
  constructor(report: (error: unknown) => void, wait: () => void = waitForGracePeriod) {
    this.#report = report;
    this.#wait = wait;
  }

  /** Calls `release` when no program can still read records that were unpublished before this call. */
  defer(release: () => void): void {
    this.#waiting.push(release);
    if (!this.#timer) this.#flushIn(DELAY_MS);
  }

  /** Waits for the grace period now. Releases that defer further ones wait for the next grace period. */
  flush(): void {
    this.#stopTimer();
    if (this.#waiting.length === 0) return;
    try {
      this.#wait();
    } catch (error) {
      // The grace period failed, so nothing may be reused: all releases wait for the next attempt.
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

  /** Drops waiting releases: the next reader of the tables finds free records by itself. */
  abandon(): void {
    this.#stopTimer();
    this.#waiting = [];
  }

  /** Runs all waiting releases, unless a grace period fails. */
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
