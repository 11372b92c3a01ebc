/** One agent for each set of folders. The kernel lets go of the locks when the agent ends, however it ends. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Folders } from "../config/config.ts";
import { KernelError } from "../kernel/error.ts";
import { FileLock, LockHeld } from "../kernel/lock.ts";

const NAME = "agent.lock";

export class Locks {
  readonly #folders: Folders;
  #locks: readonly FileLock[];

  private constructor(folders: Folders, locks: readonly FileLock[]) {
    this.#folders = folders;
    this.#locks = locks;
  }

  /** Takes the lock of each folder that exists. Throws LockHeld with the pid of the agent that has one of them. */
  static acquire(folders: Folders): Locks {
    return Locks.#acquire(folders, true);
  }

  /** The same for a command that lets go at once: it tells no pid, and an agent that starts waits for its end. */
  static acquireBriefly(folders: Folders): Locks {
    return Locks.#acquire(folders, false);
  }

  static #acquire(folders: Folders, named: boolean): Locks {
    const taken: FileLock[] = [];
    try {
      // A set: both folders may be the same one.
      for (const folder of new Set([folders.runDir, folders.stateDir])) {
        if (existsSync(folder)) taken.push(lockIn(folder, named));
      }
      // The tables have one writer, whatever its other folders are.
      if (existsSync(folders.bpffs)) taken.push(FileLock.acquireFolder(folders.bpffs));
    } catch (error) {
      for (const lock of taken) lock.release();
      throw error;
    }
    return new Locks(folders, taken);
  }

  /**
   * Takes again the locks of what somebody removed and made anew, the agent itself maybe. Gives the paths. Throws LockHeld
   * when another agent was faster.
   */
  renew(): string[] {
    const lost = this.#lost();
    for (const folder of lost) {
      const held = this.#of(folder);
      const lock = this.#lock(folder);
      this.#locks = [...this.#locks.filter((each) => each !== held), lock];
      held?.release();
    }
    return lost;
  }

  /** Which of what somebody removed and made anew another process has locked; undefined when it has none. Takes nothing. */
  lockedElsewhere(): LockHeld | undefined {
    for (const place of this.#lost()) {
      try {
        this.#lock(place, false).release();
      } catch (error) {
        if (error instanceof LockHeld) return error;
      }
    }
    return undefined;
  }

  /** The folders that are there and whose locks are not these any more. */
  #lost(): string[] {
    const { runDir, stateDir, bpffs } = this.#folders;
    const places = [...new Set([runDir, stateDir]), bpffs].filter((folder) => existsSync(folder));
    return places.filter((folder) => !this.#of(folder)?.holds);
  }

  #of(folder: string): FileLock | undefined {
    const place = [folder, join(folder, NAME)];
    return this.#locks.find(({ path }) => place.includes(path));
  }

  #lock(folder: string, named = true): FileLock {
    return folder === this.#folders.bpffs ? FileLock.acquireFolder(folder) : lockIn(folder, named);
  }

  release(): void {
    for (const lock of this.#locks) lock.release();
  }
}

/** A disk that is full or read-only keeps no agent from starting: the folder itself is locked then, without a pid. */
function lockIn(folder: string, named = true): FileLock {
  try {
    return FileLock.acquire(join(folder, NAME), named);
  } catch (error) {
    const unwritable = error instanceof KernelError && ["EROFS", "ENOSPC", "EDQUOT"].includes(error.code);
    if (!unwritable) throw error;
    return FileLock.acquireFolder(folder);
  }
}

/** The pid of the agent that lives with these folders; undefined when none does, 0 when it shares only the pins. */
export function livingAgent(folders: Folders): number | undefined {
  try {
    Locks.acquireBriefly(folders).release();
    return undefined;
  } catch (error) {
    if (error instanceof LockHeld) return error.pid ?? 0;
    throw error;
  }
}
