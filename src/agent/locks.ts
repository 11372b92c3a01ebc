/** Locks that allow one agent for each set of folders. The kernel releases them when the agent ends, however it ends. */
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

  /** Locks each folder that exists. Throws LockHeld with the pid of the agent that holds one of them. */
  static acquire(folders: Folders): Locks {
    return Locks.#acquire(folders, true);
  }

  /** The same for a command, which releases the locks soon: it writes no pid, and a starting agent waits for it. */
  static acquireBriefly(folders: Folders): Locks {
    return Locks.#acquire(folders, false);
  }

  static #acquire(folders: Folders, named: boolean): Locks {
    const taken: FileLock[] = [];
    try {
      // A set, because both folders may be the same.
      for (const folder of new Set([folders.runDir, folders.stateDir])) {
        if (existsSync(folder)) taken.push(lockIn(folder, named));
      }
      // The tables have one writer, even among agents with different run folders.
      if (existsSync(folders.bpffs)) taken.push(FileLock.acquireFolder(folders.bpffs));
    } catch (error) {
      for (const lock of taken) lock.release();
      throw error;
    }
    return new Locks(folders, taken);
  }

  /**
   * Locks folders that were removed and created again, perhaps by the agent itself. Returns their paths. Throws LockHeld
   * when another agent has locked one.
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

  /** The first recreated folder that another process has locked; undefined if there is none. Locks nothing. */
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

  /** The existing folders that these locks no longer cover. */
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

/** On a full or read-only disk the folder itself is locked, without a pid, so that an agent can start. */
function lockIn(folder: string, named = true): FileLock {
  try {
    return FileLock.acquire(join(folder, NAME), named);
  } catch (error) {
    const unwritable = error instanceof KernelError && ["EROFS", "ENOSPC", "EDQUOT"].includes(error.code);
    if (!unwritable) throw error;
    return FileLock.acquireFolder(folder);
  }
}

/** The pid of the agent with these folders; undefined if there is none, 0 if it shares only the pins. */
export function livingAgent(folders: Folders): number | undefined {
  try {
    Locks.acquireBriefly(folders).release();
    return undefined;
  } catch (error) {
    if (error instanceof LockHeld) return error.pid ?? 0;
    throw error;
  }
}
