/** What lies at a path of a bpffs, whoever pinned it there. */
import { lstatSync, readlinkSync, type Stats } from "node:fs";
import { cString } from "../runtime/ffi.ts";
import { fixedText, infoOf } from "./info.ts";
import { native } from "./native.ts";
import { BpfProgram } from "./object.ts";

export interface Pinned {
  /** "other": a symbolic link, or what the kernel doesn't open for this process. */
  kind: "map" | "program" | "link" | "folder" | "other";
  /** The kernel's number of it among its kind; 0 of a folder and of others. */
  id: number;
  /** A map's or a program's, and of a link its program's; "" where there is none. */
  name: string;
}

/** Undefined when nothing is there. Never throws: what can't be looked at is "other". */
export function pinnedAt(path: string): Pinned | undefined {
  const other: Pinned = { kind: "other", id: 0, name: "" };
  let stat: Stats | undefined;
  try {
    stat = lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOTDIR" ? undefined : other;
  }
  if (!stat) return undefined;
  if (stat.isDirectory()) return { kind: "folder", id: 0, name: "" };
  // A symbolic link would be followed.
  if (!stat.isFile()) return other;
  const fd = native().bpf_obj_get(cString(path));
  if (fd < 0) return other;
  try {
    return identify(fd) ?? other;
  } catch {
    return other;
  } finally {
    native().kmesh_close(fd);
  }
}

/** In words, as an object: "the map t". */
export function tellPinned({ kind, name }: Pinned): string {
  if (kind === "folder") return "a folder";
  if (kind === "other") return "something that is neither map nor program nor link";
  const named = name === "" ? "without a name" : name;
  return kind === "link" ? `a link of the program ${named}` : `the ${kind} ${named}`;
}

/** Undefined when the descriptor is none of a map, program or link. */
function identify(fd: number): Pinned | undefined {
  // Before 6.9 or so, of some: anon_inode:bpf-link.
  const [, type] = /bpf[-_](map|prog|link)/.exec(readlinkSync(`/proc/self/fd/${fd}`)) ?? [];
  if (type === "map") {
    const info = infoOf(fd, 88, "map");
    return { kind: "map", id: idIn(info), name: fixedText(new Uint8Array(info, 24, 16)) };
  }
  if (type === "prog") {
    const info = infoOf(fd, 80, "program");
    return { kind: "program", id: idIn(info), name: fixedText(new Uint8Array(info, 64, 16)) };
  }
  if (type !== "link") return undefined;
  const info = infoOf(fd, 32, "link");
  using program = BpfProgram.fromId(new Uint32Array(info)[2] ?? 0);
  return { kind: "link", id: idIn(info), name: program.info.name };
}

/** All three structs begin with a type, and then have the id. */
function idIn(info: ArrayBuffer): number {
  return new Uint32Array(info)[1] ?? 0;
}
