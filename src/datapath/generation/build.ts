/** Builds the missing parts of a generation: loads programs over existing maps, and pins each folder by one rename. */
import { existsSync, mkdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { listPins, unpin } from "../../kernel/bpffs.ts";
import type { Hook } from "../../kernel/link.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import { BpfProgram } from "../../kernel/object.ts";
import { pinnedAt } from "../../kernel/pinned.ts";
import { faultPoint } from "../../runtime/fault.ts";
import { GENERATION_MAPS, KEPT_MAPS, type MapName } from "../tables/tables.ts";
import { runningProgram } from "./generations.ts";
import { generationFolder, keptPin, programFolder, tablePin, unfinished } from "./pins.ts";
import { type Code, type Loaded, type LoadedAhead, loadPrograms } from "./programs.ts";

/** Loads the programs over the maps `pinned`, which it then owns, and adds the missing maps. */
export function load(code: Code, pinned: Map<MapName, BpfMap>, preloaded: LoadedAhead | undefined): Loaded {
  const ahead = preloaded?.take(pinned);
  if (!ahead) return { maps: pinned, programs: loadPrograms(code, pinned) };
  for (const map of pinned.values()) map.close();
  return ahead;
}

/** Pins all new objects. Over adopted tables, programs that are `pinned` or attached stay. */
export function pinNew(
  bpffs: string,
  { maps, programs }: Loaded,
  code: Code,
  adopted: boolean,
  pinned: Map<Hook, BpfProgram>,
): void {
  const generation = generationFolder(bpffs);
  pinKept(bpffs, maps);
  if (adopted) keepOld(bpffs, programs, maps, pinned);
  if (adopted) pinPrograms(programFolder(generation, code.hash), programs);
  else pinGeneration(generation, maps, programs, code.hash);
}

function pinKept(bpffs: string, maps: Map<MapName, BpfMap>): void {
  mkdirSync(join(bpffs, "keep"), { recursive: true });
  for (const name of KEPT_MAPS) {
    const path = keptPin(bpffs, name);
    if (existsSync(path)) continue;
    maps.get(name)?.pin(path);
    faultPoint("pin.kept");
  }
}

function pinGeneration(
  folder: string,
  maps: Map<MapName, BpfMap>,
  programs: Map<Hook, BpfProgram>,
  code: string,
): void {
  const building = unfinished(folder);
  unpin(building);
  mkdirSync(join(building, "tables"), { recursive: true });
  for (const name of GENERATION_MAPS) {
    maps.get(name)?.pin(tablePin(building, name));
    faultPoint("pin.table");
  }
  pinPrograms(programFolder(building, code), programs);
  faultPoint("pin.filled");
  renameSync(building, folder);
  faultPoint("pin.generation");
}

/** Replaces programs by identical ones that are pinned already or attached without a pin. */
function keepOld(
  bpffs: string,
  programs: Map<Hook, BpfProgram>,
  maps: Map<MapName, BpfMap>,
  pinned: Map<Hook, BpfProgram>,
): void {
  const tables = new Set([...maps.values()].map(({ info }) => info.id));
  // Programs of another code are replaced by a flip, even if they are identical, because their folder is removed.
  const others = listPins(join(generationFolder(bpffs), "programs")).map((path) => pinnedAt(path)?.id);
  for (const [hook, fresh] of programs) {
    const old = pinned.get(hook) ?? runningTwin(bpffs, hook, fresh, tables);
    if (!old) continue;
    if (!pinned.has(hook) && others.includes(old.info.id)) {
      old.close();
      continue;
    }
    fresh.close();
    programs.set(hook, old);
  }
}

/** The attached program, if it has the same instructions and tables. */
function runningTwin(
  bpffs: string,
  hook: Hook,
  fresh: BpfProgram,
  tables: Set<number>,
): BpfProgram | undefined {
  const running = runningProgram(bpffs, hook);
  if (!running) return undefined;
  const program = BpfProgram.fromId(running.id);
  const used = fresh.mapIds().filter((id) => tables.has(id));
  if (program.info.tag === fresh.info.tag && used.every((id) => running.maps.includes(id))) return program;
  program.close();
  return undefined;
}

function pinPrograms(folder: string, programs: Map<Hook, BpfProgram>): void {
  if (existsSync(folder)) {
    for (const [hook, program] of programs)
      if (!existsSync(join(folder, hook))) program.pin(join(folder, hook));
    return;
  }
  const building = unfinished(folder);
  unpin(building);
  mkdirSync(building, { recursive: true });
  for (const [hook, program] of programs) {
    program.pin(join(building, hook));
    faultPoint("pin.programs");
  }
  renameSync(building, folder);
}
