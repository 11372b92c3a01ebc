import { type Answer, check } from "./check.ts";
import { formatQuestion, type Probe } from "./probe.ts";

/** The health to report to istiod, once a threshold was reached and at each change. */
export interface Verdict {
  healthy: boolean;
  /** Why it is unhealthy; "" when it is healthy. */
  message: string;
}

/** The application's health as `kmesh status` shows it. Times are milliseconds since the epoch. */
export interface HealthStatus {
  /** The check, as text. */
  probe: string;
  /** Absent until a threshold was reached for the first time. */
  healthy?: boolean;
  since?: number;
  /** Why the last check failed; absent after a success. */
  message?: string;
  /** Consecutive results that contradict the verdict; before the first verdict, consecutive equal results. */
  streak: number;
  checks: number;
  lastCheck?: number;
}

export interface WatchOptions {
  probe: Probe;
  /** The address to check when the probe names no host. */
  address: string;
  /** Called when the verdict is first reached, and when it changes; must not throw. */
  on(verdict: Verdict): void;
  /** For tests. */
  ask?(probe: Probe, address: string, signal: AbortSignal): Promise<Answer>;
}

/** Checks the application periodically and derives a verdict from the probe's thresholds. */
export class HealthWatch {
  readonly #probe: Probe;
  readonly #address: string;
  readonly #on: (verdict: Verdict) => void;
  readonly #ask: NonNullable<WatchOptions["ask"]>;
  readonly #ending = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #verdict: (Verdict & { since: number }) | undefined;
  /** The number of consecutive equal results, and that result. */
  #row = { healthy: false, length: 0 };
  #message: string | undefined;
  #checks = 0;
  #lastCheck = 0;

  constructor(options: WatchOptions) {
    this.#probe = options.probe;
    this.#address = options.address;
    this.#on = options.on;
    this.#ask = options.ask ?? check;
  }

  /** Starts checking, after the probe's initial delay. */
  start(): void {
    this.#after(this.#probe.initialDelay);
  }

  /** Stops checking and aborts a running check. */
  stop(): void {
    this.#ending.abort();
    clearTimeout(this.#timer);
  }

  /** The last verdict, undefined before the first. */
  get verdict(): Verdict | undefined {
    if (!this.#verdict) return undefined;
    const { healthy, message } = this.#verdict;
    return { healthy, message };
  }

  status(): HealthStatus {
    const { healthy, length } = this.#row;
    const status: HealthStatus = {
      probe: formatQuestion(this.#probe.question, this.#address),
      streak: this.#verdict?.healthy === healthy ? 0 : length,
      checks: this.#checks,
    };
    if (this.#verdict) {
      status.healthy = this.#verdict.healthy;
      status.since = this.#verdict.since;
    }
    if (this.#message !== undefined) status.message = this.#message;
    if (this.#lastCheck > 0) status.lastCheck = this.#lastCheck;
    return status;
  }

  #after(milliseconds: number): void {
    this.#timer = setTimeout(() => void this.#once(), milliseconds);
  }

  /** Checks start one period apart. Two checks never overlap. */
  async #once(): Promise<void> {
    const began = performance.now();
    const answer = await this.#ask(this.#probe, this.#address, this.#ending.signal);
    if (this.#ending.signal.aborted) return;
    this.#heard(answer);
    this.#after(Math.max(0, this.#probe.period - (performance.now() - began)));
  }

  #heard(answer: Answer): void {
    const { healthy } = answer;
    this.#checks++;
    this.#lastCheck = Date.now();
    this.#message = answer.healthy ? undefined : answer.reason;
    this.#row = { healthy, length: this.#row.healthy === healthy ? this.#row.length + 1 : 1 };
    if (this.#verdict?.healthy === healthy) return;
    const { successThreshold, failureThreshold } = this.#probe;
    if (this.#row.length < (healthy ? successThreshold : failureThreshold)) return;
    const verdict = { healthy, message: answer.healthy ? "" : answer.reason };
    this.#verdict = { ...verdict, since: this.#lastCheck };
    this.#on(verdict);
  }
}
