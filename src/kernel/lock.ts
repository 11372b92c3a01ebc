/** A lock file that one process holds. The kernel releases the lock when the process ends. */
import { constants, existsSync, readFileSync, statSync } from "node:fs";
import { cString } from "../runtime/ffi.ts";
import { check, ERRNO, KernelError } from "./error.ts";
import { native } from "./native.ts";

/** Another process holds the lock. */
export class LockHeld extends Error {
  override readonly name = "LockHeld";
  readonly path: string;
  /** The pid that the holder wrote; undefined when it has not written one, or is no agent. */
  readonly pid: number | undefined;

  constructor(path: string, pid: number | undefined) {
    super(`${path} is locked by ${pid === undefined ? "another process" : `pid ${pid}`}`);
    this.path = path;
    this.pid = pid;
  }
}

/** Owns its file descriptor. The file stays behind, empty: removing it would race with the next holder. */
export class FileLock {
  readonly path: string;
  #fd: number;

  private constructor(path: string, fd: number) {
    this.path = path;
    this.#fd = fd;
  }

  /**
   * Acquires the lock without waiting and writes this pid into the file, which is created if missing (mode 0600).
   * With `named` false the file stays empty. Throws LockHeld, or KernelError when the file can't be opened.
   */
  static acquire(path: string, named = true): FileLock {
    const lib = native();
    const fd = openAndLock(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW);
    const text = Buffer.from(`${process.pid}\n`);
    lib.kmesh_truncate(fd, 0n);
    if (named) lib.kmesh_write(fd, text, BigInt(text.length));
    return new FileLock(path, fd);
  }

  /**
   * Acquires a lock on a folder. That needs no file (a bpffs allows none) and records no pid. Throws like `acquire`.
   */
  static acquireFolder(path: string): FileLock {
    return new FileLock(path, openAndLock(path, constants.O_RDONLY | constants.O_DIRECTORY));
  }

  /**
   * Whether the path still is the locked file or folder. If it was removed or created again, others can lock the new
   * one.
   */
  get holds(): boolean {
    // Not fstat(): Deno knows only the descriptors that it opened itself.
    const { dev, ino } = statSync(`/proc/self/fd/${this.#fd}`);
    const there = statSync(this.path, { throwIfNoEntry: false });
    return there?.dev === dev && there.ino === ino;
  }

  release(): void {
    if (this.#fd < 0) return;
    // Fails for a folder, which holds no pid.
    native().kmesh_truncate(this.#fd, 0n);
    native().kmesh_close(this.#fd);
    this.#fd = -1;
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

function openAndLock(path: string, flags: number): number {
  const lib = native();
  const fd = check(lib.kmesh_open(cString(path), flags, 0o600), "open", path);
  const result = lib.kmesh_flock(fd);
  if (result === 0) return fd;
  lib.kmesh_close(fd);
  if (result === -ERRNO.EWOULDBLOCK) throw new LockHeld(path, patientHolder(path));
  throw new KernelError("flock", -result, path);
}

/** A new holder may not have written its pid yet: the file is then empty, or has the pid of a dead holder. */
function patientHolder(path: string): number | undefined {
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) return undefined;
  const pause = new Int32Array(new SharedArrayBuffer(4));
  let pid: number | undefined;
  for (let tries = 0; tries < 20; tries++) {
    pid = lockHolder(path);
    if (pid !== undefined && existsSync(`/proc/${pid}`)) return pid;
    Atomics.wait(pause, 0, 0, 10);
  }
  return pid;
}

/** The pid in a lock file, even if that process is dead; undefined when there is none. */
export function lockHolder(path: string): number | undefined {
  try {
    const pid = Number.parseInt(readFileSync(path, "utf8"), 10);
    return Number.isNaN(pid) ? undefined : pid;
  } catch {
    return undefined;
  }
}
