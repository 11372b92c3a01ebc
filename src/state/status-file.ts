/** Writes what the agent knows to the file that outlives it, off the path from a push to live tables. */

import { type AgentStatus, writeStatus } from "../admin/status.ts";
import { reasonOf } from "../errors/reason.ts";

/**
 * From a change to the file, milliseconds: many changes become one write. The numbers of a push that only moved endpoints
 * may lag: the file is for those who find no agent.
 */
const DELAY = { news: 500, numbers: 5_000 };

/** How soon something has to be known. */
export type Urgency = keyof typeof DELAY;

export interface StatusFileOptions {
  runDir: string;
  log: { warn(text: string): void; debug(text: string): void };
  /** What there is to be told now. */
  status(): AgentStatus;
  /** Whether this agent holds the locks: the file belongs to the agent that does. */
  owns(): boolean;
  /** Hears of each status, also while the file is another's. */
  heard(status: AgentStatus): void;
}

export class StatusFile {
  readonly #options: StatusFileOptions;
  readonly #delay: Record<Urgency, number>;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #due = 0;
  #warned = false;

  constructor(options: StatusFileOptions, delay = DELAY) {
    this.#options = options;
    this.#delay = delay;
  }

  /** Something changed: it is written soon, with what changes until then. */
  changed(urgency: Urgency): void {
    const milliseconds = this.#delay[urgency];
    const due = performance.now() + milliseconds;
    if (this.#timer !== undefined && this.#due <= due) return;
    clearTimeout(this.#timer);
    this.#due = due;
    this.#timer = setTimeout(() => this.write(), milliseconds);
  }

  /** Writes now. Never throws. */
  write(): void {
    this.stop();
    this.#timer = undefined;
    const { runDir, log } = this.#options;
    const status = this.#options.status();
    this.#options.heard(status);
    if (!this.#options.owns()) return;
    try {
      writeStatus(runDir, status);
      this.#warned = false;
    } catch (error) {
      // A full disk is no reason to stop serving, nor to say so at every write.
      log[this.#warned ? "debug" : "warn"](`the status can't be written to ${runDir}: ${reasonOf(error)}`);
      this.#warned = true;
    }
  }

  /** What changed since the last write is not written by itself any more. */
  stop(): void {
    clearTimeout(this.#timer);
  }
}
