/** Periodic upkeep while an agent runs: repairs pins, attaches detached hooks, and corrects live counts. */

import { reasonOf } from "../errors/reason.ts";
import { cgroup2Root } from "../kernel/cgroup.ts";
import type { Hook } from "../kernel/link.ts";
import { ClosedSockets } from "./generation/closed-sockets.ts";
import type { Generation } from "./generation/generation.ts";
import { isOwnNetns } from "./inspect/preexisting-connections.ts";
import { formatReconciliation, reconcileLive } from "./inspect/reconcile.ts";
import { broadcastAddresses, exemptBroadcasts } from "./tables/broadcast.ts";

export interface UpkeepOptions {
  /** Interval, milliseconds; absent: upkeep only by call. */
  interval: number | undefined;
  /** Whether this process still owns the pins. */
  ownsPins(): boolean;
  /** Whether the hooks run this generation's programs. */
  attached(): boolean;
  log(line: string): void;
}

/** Interval of the check for ended connections, milliseconds, and the largest share of it that a check may take. */
const CLOSED_EVERY = 1_000;
const CLOSED_SHARE = 0.02;

export class Upkeep {
  readonly #options: UpkeepOptions;
  readonly #generation: Generation;
  #timer: ReturnType<typeof setInterval> | undefined;
  #closedTimer: ReturnType<typeof setTimeout> | undefined;
  /** Loaded at the first use; null when this kernel refuses it. */
  #closedSockets: ClosedSockets | null | undefined;
  /** Set until live counts are compared with the sockets: whether sock_release was detached. */
  #uncompared: boolean | undefined;
  #closed = false;
  /** The last logged failure. */
  #trouble = "";

  /** Does nothing before `start`. */
  constructor(generation: Generation, options: UpkeepOptions) {
    this.#generation = generation;
    this.#options = options;
  }

  /** `lost` are hooks that this start had to attach again. */
  start(lost: readonly Hook[]): void {
    const { interval } = this.#options;
    if (interval === undefined) return;
    this.#timer = setInterval(() => this.#look(), interval);
    this.#timer.unref?.();
    this.#uncountLater(CLOSED_EVERY);
    if (this.#generation.adopted) this.#uncompared = lost.includes("sock_release");
  }

  /** The last failure; "" without one. */
  get trouble(): string {
    return this.#trouble;
  }

  /** Logs a failure unless it repeats the last one. */
  complain(text: string): void {
    if (text !== this.#trouble) this.#options.log(text);
    this.#trouble = text;
  }

  /** Attaches and pins hooks that were detached or unpinned. Returns them. Throws KernelError. */
  relink(): Hook[] {
    const lost = this.#generation.relink(cgroup2Root());
    if (lost.length > 0)
      this.#options.log(`attached again: ${lost.join(", ")}. Somebody had detached or unpinned them`);
    return lost;
  }

  /** Schedules one comparison of an adopted generation's live counts with the sockets. */
  compareSoon(): void {
    if (this.#uncompared !== undefined) setTimeout(() => this.#compareOnce(), 0);
  }

  /**
   * Removes ended connections from the live counts, even if apps still hold their sockets. Returns how long the walk over the
   * sockets took, milliseconds: loading its program, at the first call, is no part of it. Throws KernelError.
   */
  uncountClosed(): number {
    this.#closedSockets ??= ClosedSockets.open(this.#generation.tables);
    const began = performance.now();
    this.#closedSockets.uncount();
    return performance.now() - began;
  }

  /** Stops. With `repin`, objects that were unpinned since the last check are pinned again. */
  close({ repin }: { repin: boolean }): void {
    clearInterval(this.#timer);
    clearTimeout(this.#closedTimer);
    this.#closedSockets?.close();
    this.#closed = true;
    if (!repin || this.#options.interval === undefined) return;
    try {
      for (const line of this.#repin()) this.#options.log(line);
    } catch (error) {
      this.#options.log(`what was unpinned is not pinned again: ${reasonOf(error)}`);
    }
  }

  #look(): void {
    this.#compareOnce();
    if (!this.#options.ownsPins()) return;
    const troubles: string[] = [];
    const attempt = (step: () => void) => {
      try {
        step();
      } catch (error) {
        troubles.push(reasonOf(error));
      }
    };
    attempt(() => troubles.push(...this.#repin()));
    // Broadcast addresses change with the machine's addresses.
    attempt(() => exemptBroadcasts(this.#generation.tables, broadcastAddresses()));
    attempt(() => {
      if (this.#options.attached() && this.relink().includes("sock_release")) void this.#reconcile(true);
    });
    if (troubles.length === 0) this.#trouble = "";
    else this.complain(`what is pinned is damaged and can't be put right: ${troubles.join("; ")}. Trying on`);
  }

  /** Schedules a check in `wait` milliseconds, and the following ones. Many sockets take longer and are checked less often. */
  #uncountLater(wait: number): void {
    this.#closedTimer = setTimeout(() => {
      let took = 0;
      try {
        if (this.#options.attached() && this.#closedSockets !== null) took = this.uncountClosed();
      } catch (error) {
        this.#closedSockets = null;
        this.#options.log(
          `connections that have ended stay counted until their sockets are closed: ${reasonOf(error)}`,
        );
      }
      this.#uncountLater(Math.max(CLOSED_EVERY, took / CLOSED_SHARE));
    }, wait);
    this.#closedTimer.unref?.();
  }

  /** Returns one line for each object that could not be pinned again. */
  #repin(): string[] {
    const { done, failed } = this.#generation.repin();
    for (const line of done) this.#options.log(line);
    return failed;
  }

  #compareOnce(): void {
    const damaged = this.#uncompared;
    this.#uncompared = undefined;
    if (damaged !== undefined && !this.#closed) void this.#reconcile(damaged);
  }

  /** Corrects live counts. `damaged`: sock_release was detached, so that ends of connections were missed. */
  async #reconcile(damaged: boolean): Promise<void> {
    const { tables } = this.#generation;
    try {
      const { everyNetns } = tables.settings.flags;
      const line = formatReconciliation(
        await reconcileLive(tables, damaged && !everyNetns && isOwnNetns(tables)),
      );
      if (line !== undefined) this.#options.log(line);
    } catch (error) {
      if (!this.#closed) this.complain(`live counts are not compared with the sockets: ${reasonOf(error)}`);
    }
  }
}
