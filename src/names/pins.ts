/**
 * The pins of names:
 *
 *     names/counts                      counters, which outlive every table
 *     names/<abi>/tables/<map>          the table of one layout
 *     names/<abi>/programs/<code>/...   programs over it, by the hash of their object file
 *     names/links/<ifindex>             one link an interface, where the kernel has links there (6.6)
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { dirname, join } from "node:path";
import { keptPin } from "../datapath/generation/pins.ts";
import { ensureBpffs, isOnBpffs, unpin } from "../kernel/bpffs.ts";
import { fetchAtomics } from "../kernel/features.ts";
import { BpfMap } from "../kernel/maps.ts";
import { BpfObject, BpfProgram } from "../kernel/object.ts";
import { asset } from "../runtime/assets.ts";
import { type NamePrograms, PROGRAMS, type ProgramName } from "./attach.ts";
import { countsOf } from "./counts.ts";
import * as layout from "./layout.gen.ts";
import { type NameMaps, NameTable } from "./name-table.ts";
import type { NameCounts } from "./status.ts";

export interface NamesOpened {
  maps: NameMaps;
  table: NameTable;
  programs: NamePrograms;
  /** Hash of the programs' object file, which names their folder. */
  code: string;
  /** The reason why the pinned table can't be read. An empty one replaced its pin; attached programs keep the old one. */
  unreadable?: string;
}

/** Whether another layout's table exists: this one then waits for its first push. */
export function hasOtherLayout(bpffs: string): boolean {
  return readdirSync(join(bpffs, "names")).some(
    (name) => name !== "links" && name !== "counts" && name !== layout.ABI_ID,
  );
}

/** Opens the pinned table and its explaining program for reading. Undefined when there are none. The caller closes them. */
export function pinnedNames(
  bpffs: string,
): { table: NameTable; explain: BpfProgram; counts(): NameCounts; close(): void } | undefined {
  const folder = tableFolder(bpffs);
  if (!existsSync(join(folder, "tables"))) return undefined;
  const maps = openMaps(bpffs, folder);
  const [code] = readdirSync(join(folder, "programs")).filter((name) => !name.endsWith("_new"));
  if (code === undefined) return undefined;
  const explain = BpfProgram.fromPin(join(folder, "programs", code, "names_explain"));
  const table = new NameTable(maps);
  return {
    table,
    explain,
    counts: () => countsOf(maps.names_counts),
    close() {
      table.close();
      explain.close();
      for (const map of Object.values(maps)) map.close();
    },
  };
}

export function linkFolder(bpffs: string): string {
  return join(bpffs, "names", "links");
}

export function tableFolder(bpffs: string): string {
  return join(bpffs, "names", layout.ABI_ID);
}

function countsPin(bpffs: string): string {
  return join(bpffs, "names", "counts");
}

function ownImage(): { image: Uint8Array; code: string } {
  const image = asset(fetchAtomics() ? "names.bpf.o" : "names.compat.bpf.o");
  return { image, code: createHash("sha256").update(image).digest("hex").slice(0, 12) };
}

/** Maps of the data path with enrolment and exempt agents. */
const SHARED: ReadonlySet<string> = new Set(["agents", "enrolled", "units", "enrolment", "verdicts"]);

/** The path of a map. */
function pinOf(bpffs: string, folder: string, name: string): string {
  if (name === "names_counts") return countsPin(bpffs);
  return SHARED.has(name) ? keptPin(bpffs, name) : join(folder, "tables", name);
}

const MAPS = Object.keys(layout.maps) as (keyof typeof layout.maps)[];
/** The maps in the layout's folder. */
const OWN_MAPS = MAPS.filter((name) => name !== "names_counts" && !SHARED.has(name));

function openMaps(bpffs: string, folder: string): NameMaps {
  const maps: Partial<Record<keyof typeof layout.maps, BpfMap>> = {};
  try {
    for (const name of MAPS) maps[name] = BpfMap.fromPin(pinOf(bpffs, folder, name));
    return maps as NameMaps;
  } catch (error) {
    for (const map of Object.values(maps)) map.close();
    throw error;
  }
}

/**
 * Adopts the pinned table, or creates an empty one if there is none or if it is inconsistent, and then the programs over it.
 * Attaches and detaches nothing. `report` gets later errors of freeing records. Throws KernelError, and an Error when `bpffs`
 * is not a bpffs.
 */
export function openNames(bpffs: string, report: (error: unknown) => void = () => {}): NamesOpened {
  try {
    return adoptNames(bpffs, report);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const { image, code } = ownImage();
    build(bpffs, tableFolder(bpffs), image, code);
    return { ...adoptNames(bpffs, report), unreadable: error.message };
  }
}

function adoptNames(bpffs: string, report: (error: unknown) => void): NamesOpened {
  // Names mount no bpffs: the data path has mounted one, unless it was unmounted since.
  if (!isOnBpffs(bpffs)) throw new Error(`the bpffs at ${bpffs} is no longer mounted`);
  const { image, code } = ownImage();
  const folder = tableFolder(bpffs);
  ensureBpffs(linkFolder(bpffs));
  const programFolder = join(folder, "programs", code);
  if (!hasEveryTable(folder)) build(bpffs, folder, image, code);
  const maps = openMaps(bpffs, folder);
  const programs = new Map<ProgramName, BpfProgram>();
  try {
    if (!isComplete(programFolder, maps)) buildPrograms(programFolder, image, maps);
    for (const name of PROGRAMS) programs.set(name, BpfProgram.fromPin(join(programFolder, name)));
    return { maps, table: new NameTable(maps, report), programs, code };
  } catch (error) {
    for (const held of [...programs.values(), ...Object.values(maps)]) held.close();
    throw error;
  }
}

/** Whether all tables are pinned. Attached programs continue with a table that lost its pin. */
function hasEveryTable(folder: string): boolean {
  return OWN_MAPS.every((name) => existsSync(join(folder, "tables", name)));
}

/**
 * Pins removed objects of an open table and its programs again. Returns their paths. The data path pins the shared maps.
 * Throws KernelError.
 */
export function repinNames(bpffs: string, { maps, programs, code }: NamesOpened): string[] {
  // The data path reports a missing bpffs.
  if (!isOnBpffs(bpffs)) return [];
  const folder = tableFolder(bpffs);
  ensureBpffs(linkFolder(bpffs));
  // An existing folder is complete, because it is renamed last.
  const place = existsSync(folder) ? folder : `${folder}_new`;
  if (place !== folder) unpin(place);
  const pins: [path: string, held: { pin(path: string): void }][] = [
    ...OWN_MAPS.map((name): [string, BpfMap] => [join(place, "tables", name), maps[name]]),
    ...[...programs].map(([name, program]): [string, BpfProgram] => [
      join(place, "programs", code, name),
      program,
    ]),
    [countsPin(bpffs), maps.names_counts],
  ];
  const lost = pins.filter(([path]) => !existsSync(path));
  for (const [path, held] of lost) {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    held.pin(path);
  }
  if (place !== folder) renameSync(place, folder);
  return lost.map(([path]) => path.replace(place, folder));
}

/** Whether the pinned programs read these maps. One map may have been lost and created again. */
function isComplete(folder: string, maps: NameMaps): boolean {
  if (!existsSync(folder)) return false;
  using program = BpfProgram.fromPin(join(folder, "names_ethernet"));
  const ids = new Set(program.mapIds());
  return MAPS.every((name) => ids.has(maps[name].info.id));
}

/** The temporary name of an incomplete folder. */
function build(bpffs: string, folder: string, image: Uint8Array, code: string): void {
  const unfinished = `${folder}_new`;
  unpin(unfinished);
  mkdirSync(join(unfinished, "tables"), { recursive: true, mode: 0o700 });
  using object = BpfObject.open(image, "names");
  for (const name of MAPS) {
    const pin = pinOf(bpffs, unfinished, name);
    if (!existsSync(pin)) continue;
    using map = BpfMap.fromPin(pin);
    object.useMap(name, map);
  }
  object.load();
  for (const name of MAPS) {
    const pin = pinOf(bpffs, unfinished, name);
    if (existsSync(pin)) continue;
    using map = object.map(name);
    map.pin(pin);
  }
  pinPrograms(join(unfinished, "programs", code), object);
  unpin(folder);
  renameSync(unfinished, folder);
}

function buildPrograms(folder: string, image: Uint8Array, maps: NameMaps): void {
  using object = BpfObject.open(image, "names");
  for (const name of MAPS) object.useMap(name, maps[name]);
  object.load();
  const unfinished = `${folder}_new`;
  unpin(unfinished);
  pinPrograms(unfinished, object);
  unpin(folder);
  renameSync(unfinished, folder);
}

function pinPrograms(folder: string, object: BpfObject): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  for (const name of PROGRAMS) {
    using program = object.program(name);
    program.pin(join(folder, name));
  }
}

/** Closes descriptors; the pins stay. */
export function closeNames({ table, programs, maps }: NamesOpened): void {
  table.close();
  for (const program of programs.values()) program.close();
  for (const map of Object.values(maps)) map.close();
}

/** Removes other layouts and other code, which are no longer attached. */
export function removeOthers(bpffs: string): void {
  const { code } = ownImage();
  const names = join(bpffs, "names");
  for (const name of readdirSync(names))
    if (name !== "links" && name !== "counts" && name !== layout.ABI_ID) unpin(join(names, name));
  const programs = join(tableFolder(bpffs), "programs");
  for (const name of readdirSync(programs)) if (name !== code) unpin(join(programs, name));
}
