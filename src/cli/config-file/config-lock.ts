/** One command at a time reads the configuration file and writes what it made of it. */
import { mkdirSync, readdirSync, realpathSync, rmdirSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { FileLock, LockHeld } from "../../kernel/lock.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import type { Step } from "../framework/plan.ts";

/** Another command may take so long, milliseconds: it asks the agent, which may be handing over. */
const PATIENCE = 90_000;
const LOOK = 20;

/**
 * Held from before the file is read until it is written. It lies on the file's folder: the file itself is replaced, and a
 * file beside it would stay. Who writes the file otherwise, an editor say, knows nothing of it.
 */
export class ConfigLock {
  readonly #lock: FileLock;
  /** A folder that was made for it: it goes again when nothing was written. */
  readonly #made: string | undefined;

  private constructor(lock: FileLock, made: string | undefined) {
    this.#lock = lock;
    this.#made = made;
  }

  /**
   * Waits for the lock of the configuration file `path`, whose folder is made if it is missing.
   * @param patience milliseconds
   * Rejects with Failure when another command has it for too long, and with KernelError when the folder can't be opened.
   */
  static async acquire(path: string, patience = PATIENCE): Promise<ConfigLock> {
    const folder = folderOf(path);
    const until = performance.now() + patience;
    for (;;) {
      const made = mkdirSync(folder, { recursive: true, mode: 0o755 }) === undefined ? undefined : folder;
      const before = inode(folder);
      const lock = take(folder);
      // Whoever had it last may have taken the empty folder away.
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
      // It is gone, or somebody has just written into it.
    }
    this.#lock.release();
  }
}

/**
 * Does `work` while holding the lock of `path`, but for a dry run. `work` is given what it makes of the first step that
 * needs the file no more: the lock ends with its beginning. Rejects as `acquire`, and with what `work` throws.
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

/** Where the file lies, not a link to it. */
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
