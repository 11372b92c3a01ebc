/** Keeps the tables of the previous version for a while, so that a rollback is fast, then removes them. */

import type { Log } from "../config/log.ts";
import type { Datapath } from "../datapath/datapath.ts";
import { reasonOf } from "../errors/reason.ts";

/** How long the tables are kept, milliseconds. */
export const KEEP = 3_600_000;

export class KeptGenerations {
  readonly #datapath: Pick<Datapath, "kept" | "removeKept">;
  readonly #log: Pick<Log, "info" | "warn">;
  readonly #keep: number;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    datapath: Pick<Datapath, "kept" | "removeKept">,
    log: Pick<Log, "info" | "warn">,
    keep: number = KEEP,
  ) {
    this.#datapath = datapath;
    this.#log = log;
    this.#keep = keep;
  }

  /** Call it at a start, and after a flip. `since` is the time of the flip, milliseconds since the epoch. */
  watch(since: number = Date.now()): void {
    clearTimeout(this.#timer);
    if (this.#datapath.kept.length === 0) return;
    const now = Date.now();
    // A clock that was set back must not keep the tables for ever.
    const left = since > now ? this.#keep : since + this.#keep - now;
    this.#timer = setTimeout(() => this.#remove(), Math.max(left, 0));
    this.#timer.unref?.();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  #remove(): void {
    for (const layout of this.#datapath.kept) {
      try {
        this.#datapath.removeKept(layout);
        this.#log.info(`removed the tables that another version left (layout ${layout})`);
      } catch (error) {
        this.#log.warn(`the tables of layout ${layout} stay: ${reasonOf(error)}`);
      }
    }
  }
}
