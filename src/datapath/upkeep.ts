/** Looks after what is attached while an agent runs: pins, hooks that somebody detached, and live counts. */

import { reasonOf } from "../errors/reason.ts";
import { cgroup2Root } from "../kernel/cgroup.ts";
import type { Hook } from "../kernel/link.ts";
import { ClosedSockets } from "./generation/closed-sockets.ts";
import type { Generation } from "./generation/generation.ts";
import { isOwnNetns } from "./inspect/preexisting-connections.ts";
import { formatReconciliation, reconcileLive } from "./inspect/reconcile.ts";
import { broadcastAddresses, exemptBroadcasts } from "./tables/broadcast.ts";

export interface UpkeepOptions {
  /** Milliseconds between two looks; absent: nothing is looked after, but by call. */
  interval: number | undefined;
  /** Whether this process still owns the pins. */
  ownsPins(): boolean;
  /** Whether the hooks run this generation's programs. */
  attached(): boolean;
  log(line: string): void;
}

/** Between two looks for sockets whose connections have ended, milliseconds; and what a look may take of that, a share. */
const CLOSED_EVERY = 1_000;
const CLOSED_SHARE = 0.02;

export class Upkeep {
  readonly #options: UpkeepOptions;
  readonly #generation: Generation;
  #timer: ReturnType<typeof setInterval> | undefined;
  #closedTimer: ReturnType<typeof setTimeout> | undefined;
  /** Loaded when it is first wanted; null when this kernel does not take it. */
  #closedSockets: ClosedSockets | null | undefined;
  /** Set until live counts are compared with the sockets: whether sock_release had been gone. */
  #uncompared: boolean | undefined;
  #closed = false;
  /** What could not be done, logged once. */
  #trouble = "";

  /** Does nothing before `start`. */
  constructor(generation: Generation, options: UpkeepOptions) {
    this.#generation = generation;
    this.#options = options;
  }

  /** `lost` are the hooks that this start had to attach again. */
  start(lost: readonly Hook[]): void {
    const { interval } = this.#options;
    if (interval === undefined) return;
    this.#timer = setInterval(() => this.#look(), interval);
    this.#timer.unref?.();
    this.#uncountLater(CLOSED_EVERY);
    if (this.#generation.adopted) this.#uncompared = lost.includes("sock_release");
  }

  /** What could not be done, "" when all could. */
  get trouble(): string {
    return this.#trouble;
  }

  /** Logs it unless that was the last thing that was logged. */
  complain(text: string): void {
    if (text !== this.#trouble) this.#options.log(text);
    this.#trouble = text;
  }

  /** Attaches what somebody detached or unpinned. Gives the hooks. Throws KernelError. */
  relink(): Hook[] {
    const lost = this.#generation.relink(cgroup2Root());
    if (lost.length > 0)
      this.#options.log(`attached again: ${lost.join(", ")}. Somebody had detached or unpinned them`);
    return lost;
  }

  /** Compares the live counts of an adopted generation with the sockets, once and soon: it takes a while. */
  compareSoon(): void {
    if (this.#uncompared !== undefined) setTimeout(() => this.#compareOnce(), 0);
  }

  /** Takes connections that have ended out of the live counts, though apps still hold their sockets. Throws KernelError. */
  uncountClosed(): void {
    this.#closedSockets ??= ClosedSockets.open(this.#generation.tables);
    this.#closedSockets.uncount();
  }

  /** Ends it. With `repin`, what was unpinned since the last look is pinned once more. */
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
    // They come and go with the machine's addresses.
    attempt(() => exemptBroadcasts(this.#generation.tables, broadcastAddresses()));
    attempt(() => {
      if (this.#options.attached() && this.relink().includes("sock_release")) void this.#reconcile(true);
    });
    if (troubles.length === 0) this.#trouble = "";
    else this.complain(`what is pinned is damaged and can't be put right: ${troubles.join("; ")}. Trying on`);
  }

  /** In `wait` milliseconds, and on from there: many sockets take longer, and are looked at less often. */
  #uncountLater(wait: number): void {
    this.#closedTimer = setTimeout(() => {
      const began = performance.now();
      try {
        if (this.#options.attached() && this.#closedSockets !== null) this.uncountClosed();
      } catch (error) {
        this.#closedSockets = null;
        this.#options.log(
          `connections that have ended stay counted until their sockets are closed: ${reasonOf(error)}`,
        );
      }
      this.#uncountLater(Math.max(CLOSED_EVERY, (performance.now() - began) / CLOSED_SHARE));
    }, wait);
    this.#closedTimer.unref?.();
  }

  /** Gives what could not be pinned again, a line each. */
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

  /** Corrects live counts. `damaged`: sock_release was gone, so that ends of connections were missed. */
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
