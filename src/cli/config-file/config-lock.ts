/** A lock, so that one command at a time reads and writes the configuration file. */
import { mkdirSync, readdirSync, realpathSync, rmdirSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { FileLock, LockHeld } from "../../kernel/lock.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import type { Step } from "../framework/plan.ts";

/** Longest time that another command may hold the lock, milliseconds: it asks the agent, which may hand over. */
const PATIENCE = 90_000;
const LOOK = 20;

/**
 * Held from before the file is read until it is written. The lock is on the folder, because the file itself is replaced
 * and a lock file would remain. Editors do not respect it.
 */
export class ConfigLock {
  readonly #lock: FileLock;
  /** The folder, if the lock made it. It is removed if nothing was written. */
  readonly #made: string | undefined;

  private constructor(lock: FileLock, made: string | undefined) {
    this.#lock = lock;
    this.#made = made;
  }

  /**
   * Waits for the lock of the configuration file `path`. Makes its folder if it is missing.
   * @param patience milliseconds
   * Rejects with Failure when another command holds it for too long, and with KernelError when the folder can't be opened.
   */
  static async acquire(path: string, patience = PATIENCE): Promise<ConfigLock> {
    const folder = folderOf(path);
    const until = performance.now() + patience;
    for (;;) {
      const made = mkdirSync(folder, { recursive: true, mode: 0o755 }) === undefined ? undefined : folder;
      const before = inode(folder);
      const lock = take(folder);
      // The last holder may have removed the empty folder.
      if (lock && before !== undefined && inode(folder) === before) return new ConfigLock(lock, made);
      lock?.release();
      if (performance.now() > until)
        throw new Failure(
          EXIT.failed,
          `another kmesh command has been writing ${path} for ${patience / 1000} s; nothing was changed`,
          "Try again when it has ended.",
        );
      await new Promise((done) => setTimeout(done, LOOK));
    }
  }

  /** May be called again. */
  release(): void {
    try {
      if (this.#made !== undefined && readdirSync(this.#made).length === 0) rmdirSync(this.#made);
    } catch {
      // The folder is gone, or another process has just written into it.
    }
    this.#lock.release();
  }
}

/**
 * Runs `work` under the lock of `path`; a dry run takes no lock. `work` gets a function that wraps the first step which
 * no longer needs the file: the lock is released when that step begins. Rejects as `acquire`, and with errors of `work`.
 */
export async function lockedUnless<T>(
  dry: boolean,
  path: string,
  work: (written: (step: Step) => Step) => Promise<T>,
): Promise<T> {
  if (dry) return work((step) => step);
  const lock = await ConfigLock.acquire(path);
  const ending = (step: Step): Step => {
    const { act } = step;
    if (!act) return step;
    return {
      ...step,
      act() {
        lock.release();
        return act();
      },
    };
  };
  try {
    return await work(ending);
  } finally {
    lock.release();
  }
}

/** The path of the file itself, with links resolved. */
function folderOf(path: string): string {
  try {
    return dirname(realpathSync(path));
  } catch {
    return dirname(resolve(path));
  }
}

function take(folder: string): FileLock | undefined {
  try {
    return FileLock.acquireFolder(folder);
  } catch (error) {
    if (error instanceof LockHeld) return undefined;
    throw error;
  }
}

function inode(folder: string): bigint | undefined {
  return statSync(folder, { bigint: true, throwIfNoEntry: false })?.ino;
}
