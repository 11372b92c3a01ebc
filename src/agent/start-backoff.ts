/**
 * How long a start waits after starts that failed. systemd starts the service again after 2 s, which is right for an agent
 * that died at its work and wrong for one that can't begin. systemd's own RestartSteps= (from 254 on) is no way out: its
 * counter never goes back while the service is well, so an agent killed for the tenth time in a year would come back late.
 */
import { rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { readTextFile } from "../files/read-file.ts";
import { replaceFile } from "../files/replace-file.ts";

/** systemd waits as long itself before it starts the service again, milliseconds: RestartSec=. */
const RESTART = 2_000;
/** From one start to the next at most, milliseconds; well below the unit's TimeoutStartSec=. */
const LONGEST = 30_000;
/** A start that comes later than that after the one that failed was asked for by somebody: it does not wait. */
const AUTOMATIC = 10_000;
const LOOK = 250;

interface FailedStarts {
  /** In a row. */
  count: number;
  /** When the last one ended, milliseconds since the epoch. */
  at: number;
  /** What was missing or wrong, as it was then. */
  seen: Record<string, string>;
}

export class StartBackoff {
  readonly #file: string;

  private constructor(folder: string) {
    this.#file = join(folder, "failed-starts.json");
  }

  /** Where systemd runs the agent; undefined elsewhere. The unit's RuntimeDirectory outlives a failed start. */
  static of(env: Readonly<Record<string, string | undefined>>): StartBackoff | undefined {
    const folder = env.RUNTIME_DIRECTORY?.split(":")[0];
    return env.NOTIFY_SOCKET && folder ? new StartBackoff(folder) : undefined;
  }

  /**
   * Waits as long as the failed starts before this one ask for, or until one of the files that they failed for changes.
   * Calls `report` with a sentence when it waits at all.
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
    // Whoever stops it is about to start it again, mended.
    if (stopped.aborted) this.succeeded();
  }

  /** This start failed. `paths` are files whose change may mend it. Never throws. */
  failed(paths: readonly string[]): void {
    const before = this.#read();
    const seen = Object.fromEntries(paths.map((path) => [path, fingerprint(path)]));
    const failed: FailedStarts = { count: (before?.count ?? 0) + 1, at: Date.now(), seen };
    try {
      replaceFile(this.#file, JSON.stringify(failed), { mode: 0o600 });
    } catch {
      // On a full disk the next start comes sooner.
    }
  }

  /** The next start does not wait. Never throws. */
  succeeded(): void {
    try {
      rmSync(this.#file, { force: true });
    } catch {
      // It is stale in ten seconds.
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

/** Milliseconds, besides those of systemd: starts are 2, 4, 8, 16, then 30 s apart. */
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
