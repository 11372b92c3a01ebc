/** Opens the pins of this layout that an earlier start left, requires them complete, or removes incomplete ones. */
import { existsSync, renameSync } from "node:fs";
import { join } from "node:path";
import { unpin } from "../../kernel/bpffs.ts";
import type { Hook } from "../../kernel/link.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import type { BpfProgram } from "../../kernel/object.ts";
import { ABI_ID } from "../tables/layout.gen.ts";
import { GENERATION_MAPS, isNameMap, KEPT_MAPS, type MapName, type Maps } from "../tables/tables.ts";
import { type FoundGeneration, generationsAt } from "./generations.ts";
import { heldNames } from "./map-owners.ts";
import { ownProgram, ownTable } from "./pin-ownership.ts";
import { generationFolder, HOOK_ORDER, keptPin, tablePin, unfinished } from "./pins.ts";

/** The pinned maps of this layout below `bpffs`. The caller closes them. Throws KernelError. */
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

/** All maps. Throws an Error that names a missing one. */
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
 * The kept maps that other versions use: those that their programs hold, and the names, which every version has. Such a
 * map must never be created again; a map that only this version knows may be.
 */
export function knownBefore(bpffs: string): MapName[] {
  const held = heldNames(bpffs);
  return KEPT_MAPS.filter((name) => isNameMap(name) || held.has(name));
}

function openInto(maps: Map<MapName, BpfMap>, name: MapName, path: string): void {
  const map = ownTable(path, name);
  if (map) maps.set(name, map);
}

/**
 * The generations below `bpffs`, and the pinned maps of this layout, which the caller closes. First removes parts that are
 * incomplete and unused, so that they are built again: a generation of this layout, and without any generation the shared
 * maps. Throws KernelError.
 */
export function findUseful(bpffs: string): { found: FoundGeneration[]; maps: Map<MapName, BpfMap> } {
  const found = generationsAt(bpffs);
  const maps = pinnedMaps(bpffs);
  try {
    removeUseless(bpffs, found, maps);
  } catch (error) {
    for (const map of maps.values()) map.close();
    throw error;
  }
  return { found, maps };
}

/** Removes entries from `found` and `maps`, too. */
function removeUseless(bpffs: string, found: FoundGeneration[], maps: Map<MapName, BpfMap>): void {
  const isWhole = (names: readonly MapName[]) => names.every((name) => maps.has(name));
  const remove = (folder: string, names: readonly MapName[]) => {
    for (const name of names) maps.get(name)?.close();
    for (const name of names) maps.delete(name);
    removeWhole(folder);
  };
  const own = found.findIndex(({ abi }) => abi === ABI_ID);
  if (found[own]?.live === false && !isWhole(GENERATION_MAPS)) {
    remove(generationFolder(bpffs), GENERATION_MAPS);
    found.splice(own, 1);
  }
  if (found.length === 0 && !isWhole(KEPT_MAPS)) remove(join(bpffs, "keep"), KEPT_MAPS);
}

/** Removes all shared maps or none. */
function removeWhole(folder: string): void {
  unpin(unfinished(folder));
  if (existsSync(folder)) renameSync(folder, unfinished(folder));
  unpin(unfinished(folder));
}

/** The pinned programs of one code in `folder`, by hook. The caller closes them. */
export function pinnedPrograms(folder: string): Map<Hook, BpfProgram> {
  const programs = new Map<Hook, BpfProgram>();
  try {
    for (const hook of HOOK_ORDER) {
      const program = ownProgram(join(folder, hook), hook);
      if (program) programs.set(hook, program);
    }
    return programs;
  } catch (error) {
    for (const program of programs.values()) program.close();
    throw error;
  }
}
