/** Identifies the object at a path of a bpffs, whoever pinned it. */
import { lstatSync, readlinkSync, type Stats } from "node:fs";
import { cString } from "../runtime/ffi.ts";
import { ERRNO, KernelError } from "./error.ts";
import { fixedText, infoOf } from "./info.ts";
import { native } from "./native.ts";
import { BpfProgram } from "./object.ts";

export interface Pinned {
  /** "other": not a BPF object, for example a symbolic link. */
  kind: "map" | "program" | "link" | "folder" | "other";
  /** The object's id; 0 for "folder" and "other". */
  id: number;
  /** Name of the map or program; for a link, of its program; "" when there is none. */
  name: string;
}

const OTHER: Pinned = { kind: "other", id: 0, name: "" };

/** Identifies the object at a path; undefined when there is none. Throws KernelError when it can't be identified. */
export function pinnedAt(path: string): Pinned | undefined {
  const stat = statOf(path);
  if (!stat) return undefined;
  if (stat.isDirectory()) return { kind: "folder", id: 0, name: "" };
  // A symbolic link would be followed.
  if (!stat.isFile()) return OTHER;
  const fd = openFile(path);
  if (fd === undefined) return undefined;
  try {
    return guarded(path, () => identify(fd) ?? OTHER);
  } finally {
    native().kmesh_close(fd);
  }
}

/**
 * Opens the object at a path if it is of this kind. Gives a descriptor that the caller owns; undefined when something else or
 * nothing is there. Throws KernelError when that can't be told.
 */
export function openPinned(path: string, kind: "map" | "program" | "link"): number | undefined {
  const fd = statOf(path)?.isFile() ? openFile(path) : undefined;
  if (fd === undefined) return undefined;
  let fits = false;
  try {
    fits = guarded(path, () => kindOf(fd) === kind);
  } finally {
    if (!fits) native().kmesh_close(fd);
  }
  return fits ? fd : undefined;
}

/** Undefined when the file was removed in the meantime. */
function openFile(path: string): number | undefined {
  const fd = native().bpf_obj_get(cString(path));
  if (fd === -ERRNO.ENOENT) return undefined;
  if (fd < 0) throw unknown("bpf_obj_get", -fd, path);
  return fd;
}

/** Errors name the path. */
function guarded<T>(path: string, look: () => T): T {
  try {
    return look();
  } catch (error) {
    if (error instanceof KernelError) throw unknown(error.call, error.errno, path);
    throw unknown("readlink", errnoOf(error), path);
  }
}

function statOf(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === ERRNO.ENOTDIR) return undefined;
    throw unknown("lstat", errno, path);
  }
}

function errnoOf(error: unknown): number {
  return ERRNO[(error as NodeJS.ErrnoException).code as keyof typeof ERRNO] ?? ERRNO.EIO;
}

function unknown(call: string, errno: number, path: string): KernelError {
  return new KernelError(
    call,
    errno,
    path,
    `the object pinned there can't be inspected, so nothing is changed. ${cureOf(errno, path)}`,
  );
}

function cureOf(errno: number, path: string): string {
  if (errno === ERRNO.EACCES || errno === ERRNO.EPERM)
    return `Find out what forbids it: the mode of the path (ls -ld ${path}), a lost capability (root needs CAP_SYS_ADMIN, CAP_BPF and CAP_DAC_OVERRIDE), or a security module (dmesg)`;
  if (errno === ERRNO.EMFILE || errno === ERRNO.ENFILE)
    return "Raise the limit of open files (ulimit -n, LimitNOFILE=)";
  if (errno === ERRNO.ENOMEM) return "Free some memory, then try again";
  return `Try again; when it stays, look at it: bpftool map show pinned ${path}, or prog, or link`;
}

/** Formats an object as a noun phrase: "the map t". */
export function formatPinned({ kind, name }: Pinned): string {
  if (kind === "folder") return "a folder";
  if (kind === "other") return "something that is neither map nor program nor link";
  const named = name === "" ? "without a name" : name;
  return kind === "link" ? `a link of the program ${named}` : `the ${kind} ${named}`;
}

/** Undefined when the descriptor is no map, program or link. */
function kindOf(fd: number): "map" | "program" | "link" | undefined {
  // Before about 6.9 some kinds are written with a dash: anon_inode:bpf-link.
  const [, type] = /bpf[-_](map|prog|link)/.exec(readlinkSync(`/proc/self/fd/${fd}`)) ?? [];
  if (type === "prog") return "program";
  return type === "map" || type === "link" ? type : undefined;
}

/** Undefined when the descriptor is no map, program or link. */
function identify(fd: number): Pinned | undefined {
  const kind = kindOf(fd);
  if (kind === "map") {
    const info = infoOf(fd, 88, "map");
    return { kind, id: idIn(info), name: fixedText(new Uint8Array(info, 24, 16)) };
  }
  if (kind === "program") {
    const info = infoOf(fd, 80, "program");
    return { kind, id: idIn(info), name: fixedText(new Uint8Array(info, 64, 16)) };
  }
  if (kind !== "link") return undefined;
  const info = infoOf(fd, 32, "link");
  return { kind: "link", id: idIn(info), name: programName(new Uint32Array(info)[2] ?? 0) };
}

/** The program's name; "" when the program has ended, or the link has none. */
function programName(id: number): string {
  try {
    using program = BpfProgram.fromId(id);
    return program.info.name;
  } catch (error) {
    if (error instanceof KernelError && error.errno === ERRNO.ENOENT) return "";
    throw error;
  }
}

/** The id: in all three structs it follows the type. */
function idIn(info: ArrayBuffer): number {
  return new Uint32Array(info)[1] ?? 0;
}
