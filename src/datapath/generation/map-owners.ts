/** Finds tables by the programs that hold them. Attached and pinned programs hold their maps even without pins. */
import { join } from "node:path";
import { BpfMap, type MapInfo } from "../../kernel/maps.ts";
import { ABI_ID } from "../tables/layout.gen.ts";
import { GENERATION_MAPS, KEPT_MAPS, type MapName } from "../tables/tables.ts";
import { generationsAt, type ProgramIds, readersOf, runningProgram } from "./generations.ts";
import { looksLike, ownProgram, ownTable } from "./pin-ownership.ts";
import { completeFolders, generationFolder, HOOK_ORDER, keptPin, programFolder, tablePin } from "./pins.ts";

/**
 * Opens the maps below `bpffs` for reading: through the programs, even if pins are missing, otherwise by their pins. The
 * caller closes them. Throws KernelError.
 */
export function readableMaps(bpffs: string): Map<MapName, BpfMap> {
  const { all, own } = mapOwnersAt(bpffs);
  const maps = new Map<MapName, BpfMap>();
  for (const [name, id] of [...mapsOf(all, KEPT_MAPS), ...mapsOf(own, GENERATION_MAPS)])
    maps.set(name, BpfMap.fromId(id));
  const generation = generationFolder(bpffs);
  for (const name of [...KEPT_MAPS, ...GENERATION_MAPS]) {
    if (maps.has(name)) continue;
    const isKept = (KEPT_MAPS as readonly string[]).includes(name);
    const map = ownTable(isKept ? keptPin(bpffs, name) : tablePin(generation, name), name);
    if (map) maps.set(name, map);
  }
  return maps;
}

/** One of those maps. Throws an Error that names a lost one. */
export function readableMap(bpffs: string, name: MapName): BpfMap {
  const maps = readableMaps(bpffs);
  const wanted = maps.get(name);
  for (const map of maps.values()) if (map !== wanted) map.close();
  if (wanted) return wanted;
  throw new Error(`nothing of kmesh's has the map ${name} in ${bpffs}: kmesh status shows the damage`);
}

/** The names of all maps that programs below `bpffs` use, of every layout. Throws KernelError. */
export function heldNames(bpffs: string): Set<string> {
  const ids = new Set(mapOwnersAt(bpffs).all.flatMap(({ maps }) => maps));
  return new Set([...ids].map((id) => infoOfMap(id).name));
}

/** Programs, attached ones first. */
export interface MapOwners {
  /** Programs of every layout. They hold the maps of keep/. */
  all: ProgramIds[];
  /** Programs over this layout's tables. */
  own: ProgramIds[];
  /** Whether a generation of this layout exists. */
  built: boolean;
}

/** Throws KernelError. */
export function mapOwnersAt(bpffs: string): MapOwners {
  const running = HOOK_ORDER.flatMap((hook) => runningProgram(bpffs, hook) ?? []);
  const all = [...running];
  for (const { abi } of generationsAt(bpffs)) all.push(...programsOf(bpffs, abi));
  const built = completeFolders(join(bpffs, "gen")).includes(ABI_ID);
  return { all, own: built ? all.filter(readersOf(bpffs, ABI_ID)) : [], built };
}

/** The ids of the programs' maps by name. The first program wins. */
export function mapsOf(programs: readonly ProgramIds[], names: readonly MapName[]): Map<MapName, number> {
  const found = new Map<MapName, number>();
  const seen = new Set<number>();
  for (const id of programs.flatMap(({ maps }) => maps)) {
    if (seen.has(id)) continue;
    seen.add(id);
    const info = infoOfMap(id);
    const name = names.find((each) => each === info.name);
    if (name !== undefined && !found.has(name) && looksLike({ info }, name)) found.set(name, id);
  }
  return found;
}

/** Cache by map id, because a start asks several times. The kernel reuses an id only after all others. */
const looked = new Map<number, MapInfo>();

/** The description of a map that a program holds. Throws KernelError. */
function infoOfMap(id: number): MapInfo {
  let info = looked.get(id);
  if (info === undefined) {
    using map = BpfMap.fromId(id);
    info = map.info;
    looked.set(id, info);
  }
  return info;
}

function programsOf(bpffs: string, abi: string): ProgramIds[] {
  const generation = generationFolder(bpffs, abi);
  return completeFolders(join(generation, "programs")).flatMap((code) =>
    HOOK_ORDER.flatMap((hook) => {
      using program = ownProgram(join(programFolder(generation, code), hook), hook);
      return program ? [{ id: program.info.id, maps: program.mapIds() }] : [];
    }),
  );
}
