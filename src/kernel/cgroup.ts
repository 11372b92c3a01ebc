/** The unified cgroup hierarchy: where it is mounted, and its folders' ids and depths as BPF programs see them. */
import { constants, existsSync, readFileSync, readlinkSync, realpathSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import { cString } from "../runtime/ffi.ts";
import { check, ERRNO, KernelError } from "./error.ts";
import { native } from "./native.ts";

/**
 * The mount point of cgroup2, from the text of /proc/self/mountinfo; undefined when there is none. Of several mounts,
 * the one that shows the hierarchy from its root. On hybrid layouts it is not /sys/fs/cgroup.
 */
export function findCgroup2(mountinfo: string): string | undefined {
  let found: string | undefined;
  for (const line of mountinfo.split("\n")) {
    const [mount = "", source = ""] = line.split(" - ");
    if (!source.startsWith("cgroup2 ")) continue;
    const [, , , root, point] = mount.split(" ");
    if (point === undefined) continue;
    // Spaces and similar characters are escaped as three octal digits.
    const path = point.replace(/\\([0-7]{3})/g, (_, digits: string) =>
      String.fromCharCode(Number.parseInt(digits, 8)),
    );
    if (root === "/") return path;
    found ??= path;
  }
  return found;
}

/**
 * The root of the memory cgroups, from the text of /proc/self/mountinfo: version 1's where it has the memory controller,
 * otherwise version 2's. undefined when there is none.
 */
export function findMemoryRoot(mountinfo: string): string | undefined {
  for (const line of mountinfo.split("\n")) {
    const [mount = "", source = ""] = line.split(" - ");
    if (/^cgroup .*\bmemory(,|$)/.test(source)) return mount.split(" ")[4];
  }
  return findCgroup2(mountinfo);
}

/** Throws when no cgroup2 is mounted. */
export function cgroup2Root(): string {
  const root = findCgroup2(readFileSync("/proc/self/mountinfo", "utf8"));
  if (root === undefined) throw new Error("no cgroup2 is mounted");
  return root;
}

/** The id that bpf_get_current_cgroup_id() gives: the folder's inode. Throws when there is no such folder. */
export function cgroupId(path: string): bigint {
  return statSync(path, { bigint: true }).ino;
}

/**
 * The level that bpf_get_current_ancestor_cgroup_id() counts: 0 is the root.
 * Throws when the path is not below the cgroup2 mount.
 */
export function cgroupLevel(path: string): number {
  const way = relative(realpathSync(cgroup2Root()), realpathSync(path));
  if (way === "") return 0;
  const steps = way.split("/");
  if (steps[0] === "..") throw new Error(`${path} is not a cgroup2 folder (they are below ${cgroup2Root()})`);
  return steps.length;
}

/**
 * The folder of a cgroup id; undefined when it is removed, or this process may not look it up (seccomp in a
 * container).
 */
export function cgroupPath(id: bigint): string | undefined {
  const lib = native();
  const root = cgroup2Root();
  const mount = check(
    lib.kmesh_open(cString(root), constants.O_RDONLY | constants.O_DIRECTORY, 0),
    "open",
    root,
  );
  try {
    const fd = lib.kmesh_open_cgroup(mount, id);
    if (fd === -ERRNO.ESTALE || fd === -ERRNO.EPERM) return undefined;
    if (fd < 0) throw new KernelError("open_by_handle_at", -fd, `cgroup ${id}`);
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } finally {
      lib.kmesh_close(fd);
    }
  } finally {
    lib.kmesh_close(mount);
  }
}

/** The cgroup2 folder of this process; undefined when it is outside the mounted hierarchy. */
export function ownCgroup(): string | undefined {
  const line = readFileSync("/proc/self/cgroup", "utf8")
    .split("\n")
    .find((each) => each.startsWith("0::/"));
  const path = line === undefined ? undefined : join(cgroup2Root(), line.slice("0::/".length));
  return path !== undefined && !line?.includes("/../") && existsSync(path) ? path : undefined;
}
