/**
 * The paths of all pins:
 *
 *     links/<hook>                 one link for each hook; it outlives generations
 *     keep/<map>                   maps that every generation reads and writes
 *     gen/<abi>/tables/<map>       the tables of one layout
 *     gen/<abi>/programs/<code>/   programs over those tables, by the hash of their object files
 *     aside/                       foreign objects that were pinned at one of these paths
 *
 * A folder is built under a name that ends in `_new` and renamed when it is complete.
 */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Hook } from "../../kernel/link.ts";
import { ABI_ID } from "../tables/layout.gen.ts";

/** The order in which hooks get programs: hooks that only read first, hooks that decide last. */
export const HOOK_ORDER: readonly Hook[] = [
  "sock_release",
  "getpeername4",
  "getpeername6",
  "connect4",
  "connect6",
];

/** The folder for foreign objects. */
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

/** Whether the name of a folder below gen/ is a layout's, complete or not. Other folders are foreign. */
export function isLayout(name: string): boolean {
  return /^[0-9a-f]{16}(_new)?$/.test(name);
}

/** Folders only: an object that is pinned among them is neither a generation nor code. */
function namesIn(folder: string): string[] {
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [];
  return readdirSync(folder, { withFileTypes: true }).flatMap((each) =>
    each.isDirectory() ? [each.name] : [],
  );
}

function isUnfinished(name: string): boolean {
  return name.endsWith("_new");
}
