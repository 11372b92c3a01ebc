/** What an earlier start has pinned of this layout, as a start finds it: opened, asked for whole, or cleared away. */
import { existsSync, renameSync } from "node:fs";
import { join } from "node:path";
import { unpin } from "../kernel/bpffs.ts";
import type { Hook } from "../kernel/link.ts";
import type { BpfMap } from "../kernel/maps.ts";
import type { BpfProgram } from "../kernel/object.ts";
import { generationsAt } from "./generations.ts";
import { heldNames } from "./holders.ts";
import { ABI_ID } from "./layout.gen.ts";
import { ownProgram, ownTable } from "./ownership.ts";
import { generationFolder, HOOK_ORDER, keptPin, tablePin, unfinished } from "./pins.ts";
import { GENERATION_MAPS, KEPT_MAPS, type MapName, type Maps, NAME_MAPS } from "./tables.ts";

/** The maps that are pinned below `bpffs`, of this layout. The caller closes them. Throws KernelError. */
export function pinnedMaps(bpffs: string): Map<MapName, BpfMap> {
  const generation = generationFolder(bpffs);
  const maps = new Map<MapName, BpfMap>();
  try {
    for (const name of GENERATION_MAPS) openInto(maps, name, tablePin(generation, name));
    for (const name of KEPT_MAPS) openInto(maps, name, keptPin(bpffs, name));
    return maps;
  } catch (error) {
    for (const map of maps.values()) map.close();
    throw error;
  }
}

/** All of them, or an error that names what is missing. */
export function complete(
  maps: Map<MapName, BpfMap>,
  names: readonly MapName[] = [...GENERATION_MAPS, ...KEPT_MAPS],
): Maps {
  const missing = names.filter((name) => !maps.has(name));
  if (missing.length > 0) {
    throw new Error(
      `pins are missing: ${missing.join(", ")}, and no program holds these maps. What is attached works on; ` +
        "only `kmesh down` and a new start make them again.",
    );
  }
  return Object.fromEntries(maps) as Maps;
}

/**
 * The kept maps that versions beside this one use: those that their programs hold, and the names, which every version has
 * had. One that a later version brings is made beside them; one that somebody else uses never is.
 */
export function knownBefore(bpffs: string): MapName[] {
  const held = heldNames(bpffs);
  return KEPT_MAPS.filter((name) => isName(name) || held.has(name));
}

function isName(name: MapName): boolean {
  return (NAME_MAPS as readonly MapName[]).includes(name);
}

function openInto(maps: Map<MapName, BpfMap>, name: MapName, path: string): void {
  const map = ownTable(path, name);
  if (map) maps.set(name, map);
}

/**
 * Removes what is incomplete for good and read by nobody, so that it is built anew: a generation of this layout, and where
 * there is none at all what generations share.
 */
export function removeUseless(bpffs: string): void {
  const found = generationsAt(bpffs);
  const maps = pinnedMaps(bpffs);
  const isWhole = (names: readonly MapName[]) => names.every((name) => maps.has(name));
  for (const map of maps.values()) map.close();
  const own = found.find(({ abi }) => abi === ABI_ID);
  const isUseless = own !== undefined && !own.live && !isWhole(GENERATION_MAPS);
  if (isUseless) removeWhole(generationFolder(bpffs));
  if (found.length === (isUseless ? 1 : 0) && !isWhole(KEPT_MAPS)) removeWhole(join(bpffs, "keep"));
}

/** Never half of it. */
function removeWhole(folder: string): void {
  unpin(unfinished(folder));
  if (existsSync(folder)) renameSync(folder, unfinished(folder));
  unpin(unfinished(folder));
}

/** The programs of one code that are pinned in `folder`, by hook. The caller closes them. */
export function pinnedPrograms(folder: string): Map<Hook, BpfProgram> {
  const programs = new Map<Hook, BpfProgram>();
  for (const hook of HOOK_ORDER) {
    const program = ownProgram(join(folder, hook), hook);
    if (program) programs.set(hook, program);
  }
  return programs;
}
