/** bpffs, the file system that keeps maps, programs and links when no process holds them. */
import { existsSync, mkdirSync, readdirSync, readlinkSync, rmSync, statfsSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { cString } from "../runtime/ffi.ts";
import { check } from "./error.ts";
import { native } from "./native.ts";

/** The conventional mount point, where kmesh mounts one if there is none. */
export const BPFFS = "/sys/fs/bpf";

const BPF_FS_MAGIC = 0xcafe4a11n;

/** Whether a path (or, when it does not exist, the nearest folder above it) lies on a bpffs. */
export function isOnBpffs(path: string): boolean {
  let at = resolve(path);
  while (!existsSync(at)) at = dirname(at);
  return BigInt.asUintN(32, statfsSync(at, { bigint: true }).type) === BPF_FS_MAGIC;
}

/**
 * Makes a folder for pins, private to root; mounts a bpffs on /sys/fs/bpf when the folder is meant to lie there and
 * nothing is mounted.
 * Throws when it would not lie on a bpffs, or is no folder, when a name has a dot (bpffs refuses it), and KernelError when the mount fails.
 */
export function ensureBpffs(folder: string): void {
  const path = resolve(folder);
  if (!isOnBpffs(path) && isBelow(path, BPFFS)) {
    const result = native().kmesh_mount(cString("bpf"), cString(BPFFS), cString("bpf"), 0n);
    check(result, "mount", BPFFS);
  }
  if (!isOnBpffs(path))
    throw new Error(
      `${path} is not on a bpffs: choose a folder below ${BPFFS}, or mount one: mount -t bpf bpf FOLDER`,
    );
  if (!existsSync(path) && path.slice(BPFFS.length).includes("."))
    throw new Error(`${path}: a bpffs refuses names with a dot`);
  if (existsSync(path) && !statSync(path).isDirectory())
    throw new Error(
      `${path} is not a folder: somebody has pinned something there. Find out what it is and move it away ` +
        `(mv ${path} ${path}_other), or choose another folder with --bpffs`,
    );
  mkdirSync(path, { recursive: true, mode: 0o700 });
}

/**
 * The same for a folder that existed before: mounts a bpffs again after an unmount, if all processes then see it.
 * Throws an Error with the next step.
 */
export function remakeBpffs(folder: string): void {
  if (!isOnBpffs(folder) && !(isBelow(folder, BPFFS) && seesAllMounts()))
    throw new Error(`the bpffs at ${folder} is no longer mounted. Mount it: mount -t bpf bpf FOLDER`);
  ensureBpffs(folder);
}

function isBelow(path: string, folder: string): boolean {
  return path === folder || path.startsWith(`${folder}/`);
}

/** Whether this process is in the machine's mount namespace, not in a sandbox. */
function seesAllMounts(): boolean {
  try {
    return readlinkSync("/proc/self/ns/mnt") === readlinkSync("/proc/1/ns/mnt");
  } catch {
    return false;
  }
}

/** Removes a pin, or a folder with all its pins. A missing path is no error. */
export function unpin(path: string): void {
  if (!isOnBpffs(path)) {
    if (!existsSync(path)) return;
    throw new Error(`${path} is not on a bpffs: nothing was removed`);
  }
  rmSync(path, { recursive: true, force: true });
}

/** The paths of everything pinned below a folder, sorted; [] when there is no such folder. */
export function listPins(folder: string): string[] {
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [];
  const pins: string[] = [];
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) pins.push(...listPins(path));
    else pins.push(path);
  }
  return pins.sort();
}
