/**
 * Carries out `kmesh restart`, `upgrade` and `rollback`: the agent executes itself again under its pid, or starts a successor
 * and hands over to it. predecessor.ts describes the protocol between the two.
 */

import { existsSync } from "node:fs";
import { Conflict } from "../admin/server.ts";
import type { Log } from "../config/log.ts";
import { reasonOf } from "../errors/reason.ts";
import type { LockHeld } from "../kernel/lock.ts";
import { signalTask, spawnOrphan, type TaskIdentity } from "../kernel/process.ts";
import { selfCommand } from "../runtime/self.ts";
import { version } from "../runtime/version.ts";
import type { Entry } from "../state/history.ts";
import { handOver, type Predecessor } from "./predecessor.ts";
import { INVITATION } from "./protocol.ts";
import type { RestartRequest } from "./restart-request.ts";

/** Interval of heartbeats to the command that waits for a hand-over, milliseconds. */
const BEAT = 1_000;

/** Why the agent ends without a signal. */
export type End =
  /** It executes the command under its own pid. */
  | { kind: "restart"; command: string[] }
  /** Another process is the agent. */
  | { kind: "succeeded"; pid: number }
  /** Another agent holds the locks that this one held, after somebody removed their folders. */
  | { kind: "lost"; holder: LockHeld };

/** Executes this process again with its own arguments. */
export function executedAnew(): End {
  return { kind: "restart", command: [...selfCommand(), ...process.argv.slice(2)] };
}

export interface RestartOptions {
  log: Log;
  /** Whether this agent has the tables. */
  holds(): boolean;
  /** This agent as it is now, for a successor. */
  predecessor(): Predecessor;
  /** For `kmesh history`. */
  record(entry: Omit<Entry, "at" | "boot" | "pid"> & { pid?: number }): void;
  /** Reloads the configuration. Throws, after it has logged the reason, when nothing was changed. */
  reload(): void;
  /** This process has to end. */
  end(why: End): void;
}

/** Carries out one request at a time. */
export class Restart {
  readonly #options: RestartOptions;
  #current: { kind: RestartRequest["kind"]; since: Date; task?: TaskIdentity } | undefined;
  /** The process that took over; this one is about to end. */
  #successor: TaskIdentity | undefined;
  #reloadsLater = false;

  constructor(options: RestartOptions) {
    this.#options = options;
  }

  /** Whether another process is about to take over. */
  get isUnderWay(): boolean {
    return this.#current !== undefined;
  }

  /**
   * Takes a SIGHUP that comes while another process is about to take over: whoever is the agent afterwards reloads then,
   * since a successor may have read the configuration before it was changed. Gives false when nobody is.
   */
  postponeReload(): boolean {
    if (this.#successor) signalTask(this.#successor, "SIGHUP");
    else if (this.#current) this.#reloadsLater = true;
    return this.#current !== undefined;
  }

  /** Kills a successor that has not taken over yet. */
  abandon(): void {
    if (this.#current?.task) signalTask(this.#current.task, "SIGKILL");
  }

  /** Answers line by line, the last one with the proof or the reason why there is none. Throws Conflict when it can't be now. */
  async carryOut(order: RestartRequest, answer: (line: unknown) => void): Promise<void> {
    if (this.#current) {
      const { kind, since, task } = this.#current;
      const whom = task ? ` (pid ${task.tgid})` : "";
      throw new Conflict(`a ${kind} is under way since ${since.toISOString()}${whom}`);
    }
    if (!this.#options.holds()) throw new Conflict("this agent is only about to take over itself");
    const [executable = "", ...rest] = order.executable ? [order.executable] : selfCommand();
    const args = [...rest, ...process.argv.slice(2)];
    if (!existsSync(executable)) throw new Conflict(`there is no ${executable} to be started`);
    if (!order.graceful) {
      answer({ restarts: process.pid });
      this.#options.end({ kind: "restart", command: [executable, ...args] });
      return;
    }
    if (process.pid === 1)
      throw new Conflict("the agent is the first process of its container, which would end with it");
    await this.#handOver(order, [executable, ...args], answer);
  }

  async #handOver(
    { kind, timeout }: RestartRequest,
    command: [string, ...string[]],
    answer: (line: unknown) => void,
  ): Promise<void> {
    const { log, record, end } = this.#options;
    const [executable] = command;
    this.#current = { kind, since: new Date() };
    log.info(`A ${kind} was requested: ${executable} will succeed this agent`);
    const beat = setInterval(() => answer({ beat: true }), BEAT);
    const progress = (text: string) => {
      log.debug(text);
      answer({ progress: text });
    };
    try {
      const spawn = (socket: string) => {
        const env = { ...process.env, [INVITATION]: socket, WATCHDOG_PID: undefined };
        const task = spawnOrphan(executable, command, env);
        if (this.#current) this.#current.task = task;
        return task;
      };
      const proof = await handOver(this.#options.predecessor(), { timeout, spawn, progress }, version);
      const { from_version: from, to_version: to, pid, synced: _, seconds: __, ...figures } = proof;
      record({ kind, from, to, result: "done", pid, ...figures });
      log.info(`pid ${pid} (${to}) took over after ${figures.gap_ms} ms; this agent ends`);
      answer({ proof });
      this.#successor = this.#current?.task;
      if (this.#reloadsLater) this.postponeReload();
      end({ kind: "succeeded", pid });
    } catch (error) {
      const reason = reasonOf(error);
      this.#current = undefined;
      log.error(`No ${kind}, this agent continues: ${reason}`);
      record({ kind, from: version, result: "failed", reason });
      answer({ failure: reason });
      this.#reloadNow();
    } finally {
      clearInterval(beat);
    }
  }
  /** Does the reload that was asked for during the hand-over. */
  #reloadNow(): void {
    if (!this.#reloadsLater) return;
    this.#reloadsLater = false;
    try {
      this.#options.reload();
    } catch {
      // Told in the log.
    }
  }
}
