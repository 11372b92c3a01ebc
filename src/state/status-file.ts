/** Writes the agent's status to the file that outlives it, off the path from a push to live tables. */

import { type AgentStatus, writeStatus } from "../admin/status.ts";
import { reasonOf } from "../errors/reason.ts";

/**
 * Delay from a change to the write, milliseconds, so that many changes become one write. The counts of a push that
 * only moved endpoints may lag: the file is for readers that find no agent.
 */
const DELAY = { news: 500, numbers: 5_000 };

/** How soon a change must be in the file. */
export type Urgency = keyof typeof DELAY;

export interface StatusFileOptions {
  runDir: string;
  log: { warn(text: string): void; debug(text: string): void };
  /** The present status. */
  status(): AgentStatus;
  /** Whether this agent holds the locks: the file belongs to the agent that does. */
  owns(): boolean;
  /** Called with each status, even while another agent owns the file. */
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

  /** Schedules a write. It includes later changes until then. */
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
      // A full disk must not stop the agent. Repeated failures are logged at debug level.
      log[this.#warned ? "debug" : "warn"](`the status can't be written to ${runDir}: ${reasonOf(error)}`);
      this.#warned = true;
    }
  }

  /** Cancels the scheduled write. */
  stop(): void {
    clearTimeout(this.#timer);
  }
}
