/**
 * Where everything is pinned:
 *
 *     links/<hook>                 one link a hook; it outlives generations
 *     keep/<map>                   what every generation reads and writes
 *     gen/<abi>/tables/<map>       the tables of one layout
 *     gen/<abi>/programs/<code>/   programs over those tables, by the hash of their object files
 *     aside/                       what somebody else pinned at one of these paths
 *
 * A folder is built under a name with `_new` behind it and renamed when it is complete.
 */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Hook } from "../../kernel/link.ts";
import { ABI_ID } from "../tables/layout.gen.ts";

/** The order in which hooks get programs: those that read first, those that decide last. */
export const HOOK_ORDER: readonly Hook[] = [
  "sock_release",
  "getpeername4",
  "getpeername6",
  "connect4",
  "connect6",
];

/** The folder for what is somebody else's. */
export const ASIDE = "aside";

export function linkPin(bpffs: string, hook: Hook): string {
  return join(bpffs, "links", hook);
}

export function keptPin(bpffs: string, map: string): string {
  return join(bpffs, "keep", map);
}

export function generationFolder(bpffs: string, abi: string = ABI_ID): string {
  return join(bpffs, "gen", abi);
}

export function tablePin(generation: string, map: string): string {
  return join(generation, "tables", map);
}

export function programFolder(generation: string, code: string): string {
  return join(generation, "programs", code);
}

/** A folder while it is being built. */
export function unfinished(folder: string): string {
  return `${folder}_new`;
}

/** The names of the complete folders in `folder`; [] when it is missing. */
export function completeFolders(folder: string): string[] {
  return namesIn(folder).filter((name) => !isUnfinished(name));
}

/** The paths of the folders in `folder` that were never completed. */
export function unfinishedFolders(folder: string): string[] {
  return namesIn(folder)
    .filter(isUnfinished)
    .map((name) => join(folder, name));
}

/** Whether a folder below gen/ is named as a layout is, or was to be when it is complete: others are somebody else's. */
export function isLayout(name: string): boolean {
  return /^[0-9a-f]{16}(_new)?$/.test(name);
}

/** Folders alone: what somebody pinned among them is no generation and no code. */
function namesIn(folder: string): string[] {
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [];
  return readdirSync(folder, { withFileTypes: true }).flatMap((each) =>
    each.isDirectory() ? [each.name] : [],
  );
}

function isUnfinished(name: string): boolean {
  return name.endsWith("_new");
}
