/**
 * Delays a start after failed starts. systemd starts the service again after 2 s, which is right for an agent that crashed
 * and too often for one that can't start. systemd's RestartSteps= (254 and later) does not help: its counter is not reset
 * while the service is healthy, so the tenth crash in a year would be followed by a long pause.
 */
import { rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { readTextFile } from "../files/read-file.ts";
import { replaceFile } from "../files/replace-file.ts";

/** systemd's own delay before a restart, milliseconds: RestartSec=. */
const RESTART = 2_000;
/** Longest time between two starts, milliseconds; well below the unit's TimeoutStartSec=. */
const LONGEST = 30_000;
/** A later start was requested by an operator and does not wait, milliseconds. */
const AUTOMATIC = 10_000;
const LOOK = 250;

interface FailedStarts {
  /** Consecutive failures. */
  count: number;
  /** The end of the last one, milliseconds since the epoch. */
  at: number;
  /** The files that were missing or wrong, with their state at that time. */
  seen: Record<string, string>;
}

export class StartBackoff {
  readonly #file: string;

  private constructor(folder: string) {
    this.#file = join(folder, "failed-starts.json");
  }

  /** The state file under systemd; undefined elsewhere. The unit's RuntimeDirectory outlives a failed start. */
  static of(env: Readonly<Record<string, string | undefined>>): StartBackoff | undefined {
    const folder = env.RUNTIME_DIRECTORY?.split(":")[0];
    return env.NOTIFY_SOCKET && folder ? new StartBackoff(folder) : undefined;
  }

  /**
   * Waits for the backoff of earlier failed starts, or until one of the files that caused them changes. Calls `report` with
   * a sentence if it waits.
   */
  async wait(report: (text: string) => void, stopped: AbortSignal): Promise<void> {
    const failed = this.#read();
    const since = Date.now() - (failed?.at ?? 0);
    if (!failed || since < 0 || since > AUTOMATIC) return this.succeeded();
    const delay = delayAfter(failed.count);
    const changed = () => Object.entries(failed.seen).some(([path, then]) => fingerprint(path) !== then);
    if (delay === 0 || changed()) return;
    const paths = Object.keys(failed.seen).join(" or ");
    report(
      `The last ${failed.count} starts failed: this one waits ${delay / 1000} s${paths === "" ? "" : `, or until ${paths} changes`}`,
    );
    const until = performance.now() + delay;
    while (performance.now() < until && !stopped.aborted && !changed()) await sleep(LOOK);
    // A stop ends the wait: the operator has repaired the fault and starts it again.
    if (stopped.aborted) this.succeeded();
  }

  /** Records a failed start. A change of a file in `paths` may repair it. Never throws. */
  failed(paths: readonly string[]): void {
    const before = this.#read();
    const seen = Object.fromEntries(paths.map((path) => [path, fingerprint(path)]));
    const failed: FailedStarts = { count: (before?.count ?? 0) + 1, at: Date.now(), seen };
    try {
      replaceFile(this.#file, JSON.stringify(failed), { mode: 0o600 });
    } catch {
      // On a full disk the next start does not wait.
    }
  }

  /** Clears the record, so that the next start does not wait. Never throws. */
  succeeded(): void {
    try {
      rmSync(this.#file, { force: true });
    } catch {
      // The record expires in ten seconds.
    }
  }

  #read(): FailedStarts | undefined {
    try {
      const { count, at, seen } = JSON.parse(readTextFile(this.#file)) as Partial<FailedStarts>;
      if (!Number.isInteger(count) || typeof at !== "number" || typeof seen !== "object") return undefined;
      return { count: Number(count), at, seen };
    } catch {
      return undefined;
    }
  }
}

/** Milliseconds in addition to systemd's delay: starts are 2, 4, 8, 16, then 30 s apart. */
export function delayAfter(failures: number): number {
  return Math.min(LONGEST, RESTART * 2 ** Math.max(0, failures - 1)) - RESTART;
}

function fingerprint(path: string): string {
  try {
    const { ino, size, mtimeMs, ctimeMs } = statSync(path);
    return [ino, size, mtimeMs, ctimeMs].join(" ");
  } catch {
    return "";
  }
}
