/**
 * The maps that programs hold. They are there though somebody removed their pins: whoever looks finds them by the
 * programs, and those by their links.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { pinKind } from "../kernel/bpffs.ts";
import { CGROUP_LINK, CgroupLink } from "../kernel/link.ts";
import { BpfMap, FLAG } from "../kernel/maps.ts";
import { BpfProgram } from "../kernel/object.ts";
import { ABI_ID, maps as LAYOUTS } from "./layout.gen.ts";
import { completeFolders, generationFolder, keptPin, programFolder, tablePin } from "./pins.ts";
import { GENERATION_MAPS, KEPT_MAPS, type MapName } from "./tables.ts";

const NAMES: readonly string[] = [...GENERATION_MAPS, ...KEPT_MAPS];
const GENERATION_NAMES: readonly string[] = GENERATION_MAPS;

/** A program of kmesh, of whichever version. */
export interface Holder {
  id: number;
  name: string;
  /** 16 hex digits over its instructions. */
  tag: string;
  /** A hook runs it. */
  running: boolean;
  /** Layout of its tables, where its pin, or that of one of its tables, tells it. */
  abi?: string;
  /** Its maps that have a name of ours, by their names. */
  maps: Map<MapName, number>;
}

/** Whether a map is what `name` says, as far as its outside tells. */
export function fits(name: MapName, { info }: BpfMap): boolean {
  const { type, keySize, valueSize } = LAYOUTS[name];
  return (
    info.type === type &&
    info.keySize === keySize &&
    info.valueSize === valueSize &&
    info.name === name.slice(0, 15)
  );
}

/** kmesh's programs that are pinned or attached by a pin below `bpffs`; those that run are first. Throws KernelError. */
export function holdersAt(bpffs: string): Holder[] {
  const names = new MapNames();
  const found = new Map<number, Holder>();
  const add = (program: BpfProgram, more: { running: boolean; abi?: string }) => {
    const { id, name, tag } = program.info;
    const before = found.get(id);
    if (before) {
      if (more.abi !== undefined) before.abi ??= more.abi;
      return;
    }
    const maps = names.of(program.mapIds());
    if (maps.has("sockets")) found.set(id, { id, name, tag, maps, ...more });
  };
  for (const id of runningPrograms(bpffs)) {
    using program = BpfProgram.fromId(id);
    add(program, { running: true });
  }
  for (const { abi, path } of programPins(bpffs)) {
    using program = BpfProgram.fromPin(path);
    add(program, { running: false, abi });
  }
  const all = [...found.values()];
  for (const holder of all) if (holder.abi === undefined && usesPinned(bpffs, holder)) holder.abi = ABI_ID;
  return all;
}

/** Ids of the maps that `holders` have: the kept ones of all of them, the tables of those with this build's layout. */
export function heldMaps(holders: readonly Holder[]): Map<MapName, number> {
  const held = new Map<MapName, number>();
  for (const { abi, maps } of holders) {
    for (const [name, id] of maps) {
      const other = abi !== ABI_ID && GENERATION_NAMES.includes(name);
      if (!other && !held.has(name)) held.set(name, id);
    }
  }
  return held;
}

/**
 * The maps below `bpffs` for who only reads: those that are pinned, and where a pin is gone or is none of ours, those that
 * programs hold. The caller closes them. Throws KernelError.
 */
export function readableMaps(bpffs: string): Map<MapName, BpfMap> {
  const generation = generationFolder(bpffs);
  const maps = new Map<MapName, BpfMap>();
  let held: Map<MapName, number> | undefined;
  for (const name of NAMES as readonly MapName[]) {
    const path = GENERATION_NAMES.includes(name) ? tablePin(generation, name) : keptPin(bpffs, name);
    const pinned = pinKind(path) === "map" ? BpfMap.fromPin(path) : undefined;
    if (pinned && fits(name, pinned)) {
      maps.set(name, pinned);
      continue;
    }
    pinned?.close();
    held ??= heldMaps(holdersAt(bpffs));
    const id = held.get(name);
    if (id !== undefined) maps.set(name, BpfMap.fromId(id));
  }
  return maps;
}

/** An empty table of names in the place of one that is lost, for who only reads. */
export function standIn(name: MapName): BpfMap {
  const { type, keySize, valueSize, maxEntries } = LAYOUTS[name];
  const flags = FLAG.mmapable | FLAG.innerMap;
  using inner = BpfMap.create({
    name: "empty",
    type: "array",
    keySize: 4,
    valueSize: 8,
    maxEntries: 1,
    flags,
  });
  return BpfMap.create({ name, type, keySize, valueSize, maxEntries, inner });
}

/** Whether a program is kmesh's: of whichever version. */
export function isOurs(bpffs: string, program: BpfProgram): boolean {
  const ids = program.mapIds();
  // All of ours read or write what connect() leaves with a socket.
  return ids.includes(pinnedId(keptPin(bpffs, "sockets")) ?? 0) || new MapNames().of(ids).has("sockets");
}

/** The id of the map that is pinned there; undefined when none is. */
export function pinnedId(path: string): number | undefined {
  if (pinKind(path) !== "map") return undefined;
  using map = BpfMap.fromPin(path);
  return map.info.id;
}

function runningPrograms(bpffs: string): number[] {
  const folder = join(bpffs, "links");
  if (pinKind(folder) !== "folder") return [];
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    if (pinKind(path) !== "link") return [];
    using link = CgroupLink.fromPin(path);
    const { type, cgroupId, programId } = link.info();
    return type === CGROUP_LINK && cgroupId !== 0n ? [programId] : [];
  });
}

function programPins(bpffs: string): { abi: string; path: string }[] {
  return completeFolders(join(bpffs, "gen")).flatMap((abi) => {
    const generation = generationFolder(bpffs, abi);
    return completeFolders(join(generation, "programs")).flatMap((code) => {
      const folder = programFolder(generation, code);
      if (pinKind(folder) !== "folder") return [];
      const paths = readdirSync(folder).map((name) => join(folder, name));
      return paths.filter((path) => pinKind(path) === "program").map((path) => ({ abi, path }));
    });
  });
}

/** Whether one of the tables that are pinned for this build is the program's. */
function usesPinned(bpffs: string, { maps }: Holder): boolean {
  const generation = generationFolder(bpffs);
  return GENERATION_MAPS.some((name) => {
    const id = maps.get(name);
    return id !== undefined && pinnedId(tablePin(generation, name)) === id;
  });
}

/** Names of maps by their ids, each looked up once. */
class MapNames {
  readonly #known = new Map<number, MapName | undefined>();

  of(ids: readonly number[]): Map<MapName, number> {
    const maps = new Map<MapName, number>();
    for (const id of ids) {
      if (!this.#known.has(id)) this.#known.set(id, nameOf(id));
      const name = this.#known.get(id);
      if (name !== undefined) maps.set(name, id);
    }
    return maps;
  }
}

function nameOf(id: number): MapName | undefined {
  using map = BpfMap.fromId(id);
  const name = NAMES.find((each) => each.slice(0, 15) === map.info.name) as MapName | undefined;
  return name !== undefined && fits(name, map) ? name : undefined;
}
