/** A generation in the kernel: its tables and programs, built and pinned once, adopted by every later start. */
import { existsSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { ensureBpffs, unpin } from "../kernel/bpffs.ts";
import { CgroupLink, type Hook } from "../kernel/link.ts";
import { BpfMap } from "../kernel/maps.ts";
import { BpfProgram } from "../kernel/object.ts";
import { faultPoint } from "../runtime/fault.ts";
import {
  type FoundGeneration,
  generationsAt,
  isAlive,
  type Others,
  pinnedLink,
  removeGeneration,
  removeUnfinished,
} from "./generations.ts";
import { ABI_ID, maps as LAYOUTS } from "./layout.gen.ts";
import {
  completeFolders,
  generationFolder,
  HOOK_ORDER,
  keptPin,
  linkPin,
  programFolder,
  tablePin,
  unfinished,
} from "./pins.ts";
import { type Code, loadPrograms, ownCode } from "./programs.ts";
import { standingAt } from "./standing.ts";
import type { Announce, GenerationName } from "./step.ts";
import { GENERATION_MAPS, KEPT_MAPS, type MapName, type Maps, Tables } from "./tables.ts";

export class Generation {
  readonly tables: Tables;
  /** False when it was built just now, with empty tables. */
  readonly adopted: boolean;
  readonly #bpffs: string;
  readonly #programs: Map<Hook, BpfProgram>;
  /** What this process has pinned and nobody knows yet, but for what is kept. */
  readonly #built: string | undefined;
  /** Names this build's programs among those that were pinned over the same tables. */
  readonly code: string;
  #others: FoundGeneration[];

  private constructor(
    bpffs: string,
    tables: Tables,
    programs: Map<Hook, BpfProgram>,
    adopted: boolean,
    code: string,
    others: FoundGeneration[],
    built: string | undefined,
  ) {
    this.#built = built;
    this.#bpffs = bpffs;
    this.tables = tables;
    this.#programs = programs;
    this.adopted = adopted;
    this.code = code;
    this.#others = others;
  }

  /**
   * Adopts what is pinned below `bpffs`, or loads `code` and pins an empty generation, beside those of other layouts when there
   * are any; attaches nothing. What an earlier start left half built is removed. `announce` hears of it before it builds.
   * Throws KernelError, and an Error that names the pin which is missing or is none of ours; what was pinned before stays
   * as it was.
   */
  static open(bpffs: string, announce: Announce = () => {}, code: Code = ownCode()): Generation {
    ensureBpffs(bpffs);
    removeUnfinished(bpffs);
    const found = generationsAt(bpffs);
    const folder = generationFolder(bpffs);
    const maps = pinnedMaps(bpffs);
    const adopted = found.some(({ abi }) => abi === ABI_ID);
    const others = found.filter(({ abi }) => abi !== ABI_ID);
    if (adopted) complete(maps);
    else if (others.length > 0) complete(maps, KEPT_MAPS);
    const tables = () => new Tables(complete(maps));
    const pinned = adopted ? pinnedPrograms(programFolder(folder, code.hash)) : undefined;
    if (pinned) return new Generation(bpffs, tables(), pinned, adopted, code.hash, others, undefined);
    const [from] = standingAt(bpffs).live;
    announce({ name: "build", ...(from ? { from } : {}), to: { abi: ABI_ID, code: code.hash } });
    const programs = build(bpffs, maps, code, adopted);
    announce(undefined);
    const built = adopted ? programFolder(folder, code.hash) : folder;
    return new Generation(bpffs, tables(), programs, adopted, code.hash, others, built);
  }

  get name(): GenerationName {
    return { abi: ABI_ID, code: this.code };
  }

  /** What generations of other layouts there are beside this one. */
  get others(): Others {
    if (this.#others.some(({ live }) => live)) return "live";
    return this.#others.length > 0 ? "kept" : "none";
  }

  /** Their layouts; those that connect() reads first. */
  get otherLayouts(): string[] {
    return [...this.#others].sort((a, b) => Number(b.live) - Number(a.live)).map(({ abi }) => abi);
  }

  /** Removes another layout's generation. Throws when hooks still read it. */
  removeOther(abi: string): void {
    if (this.#others.some((other) => other.abi === abi && other.live))
      throw new Error(`the tables of layout ${abi} are in use`);
    faultPoint("remove.other");
    removeGeneration(this.#bpffs, abi);
    faultPoint("remove.other.done");
    this.#others = this.#others.filter((other) => other.abi !== abi);
  }

  /** Whether every hook runs this generation's programs. */
  get attached(): boolean {
    return HOOK_ORDER.every((hook) => {
      const link = pinnedLink(this.#bpffs, hook);
      const info = link?.info();
      link?.close();
      return info !== undefined && isAlive(info) && info.programId === this.#programs.get(hook)?.info.id;
    });
  }

  /** Whether hooks run other programs than these, which `attach` would put in their place. */
  get replaces(): boolean {
    return runOthers(this.#bpffs, (hook) => this.#programs.get(hook)?.info.id);
  }

  /** By hook, what names the instructions of its program. */
  get tags(): Map<Hook, string> {
    return new Map([...this.#programs].map(([hook, program]) => [hook, program.info.tag]));
  }

  /** Whether connect() reads these tables, by one hook at least: they are filled. */
  get live(): boolean {
    return generationsAt(this.#bpffs).some(({ abi, live }) => abi === ABI_ID && live);
  }

  /**
   * Attaches the hooks whose link is gone or was detached, and leaves the others as they are. Gives those that it
   * attached. Only for tables that are filled.
   */
  relink(root: string): Hook[] {
    const lost = HOOK_ORDER.filter((hook) => {
      using link = pinnedLink(this.#bpffs, hook);
      return !link || !isAlive(link.info());
    });
    if (lost.length > 0) mkdirSync(join(this.#bpffs, "links"), { recursive: true });
    return lost.filter((hook) => {
      const program = this.#programs.get(hook);
      return program !== undefined && point(this.#bpffs, root, hook, program);
    });
  }

  /** Whether every hook has a link, whichever program runs there: what is pinned governs, or did until someone detached it. */
  get linked(): boolean {
    return HOOK_ORDER.every((hook) => existsSync(linkPin(this.#bpffs, hook)));
  }

  /**
   * Gives every hook this generation's program: new links at the cgroup2 root `root`, another program for those that
   * are there. Then the hooks that only another version has end. Gives the hooks that changed.
   */
  attach(root: string): Hook[] {
    const folder = join(this.#bpffs, "links");
    mkdirSync(folder, { recursive: true });
    const changed = HOOK_ORDER.filter((hook) => {
      faultPoint("flip.hook");
      const program = this.#programs.get(hook);
      return program !== undefined && point(this.#bpffs, root, hook, program);
    });
    faultPoint("flip.hooks");
    this.#others = this.#others.map(({ abi }) => ({ abi, live: false }));
    this.#removeRest();
    return changed;
  }

  /** After a flip that may have broken off behind its last hook: removes what it had not removed yet. */
  finishFlip(): void {
    if (this.attached) this.#removeRest();
  }

  /** Hooks that only another version has end; programs over the same tables that no hook runs any more are unpinned. */
  #removeRest(): void {
    const links = join(this.#bpffs, "links");
    for (const name of readdirSync(links)) if (!isOurs(name)) unpin(join(links, name));
    faultPoint("remove.programs");
    const programs = join(generationFolder(this.#bpffs), "programs");
    for (const name of completeFolders(programs)) if (name !== this.code) unpin(join(programs, name));
  }

  /** Unpins what this process has built, for no hook runs it: its programs don't work. */
  discard(): void {
    if (this.#built === undefined || (!this.adopted && this.live)) return;
    unpin(this.#built);
  }

  /** Lets go of descriptors; nothing is unpinned or detached. */
  close(): void {
    for (const program of this.#programs.values()) program.close();
    this.tables.close();
  }
}

/** Whether hooks run programs that are not `code`'s: those of another version. */
export function governedByOthers(bpffs: string, code: Code): boolean {
  const folder = programFolder(generationFolder(bpffs), code.hash);
  return runOthers(bpffs, (hook) => {
    const pin = join(folder, hook);
    if (!existsSync(pin)) return undefined;
    using program = BpfProgram.fromPin(pin);
    return program.info.id;
  });
}

function runOthers(bpffs: string, own: (hook: Hook) => number | undefined): boolean {
  return HOOK_ORDER.some((hook) => {
    using link = pinnedLink(bpffs, hook);
    const info = link?.info();
    return info !== undefined && isAlive(info) && info.programId !== own(hook);
  });
}

/** The maps that are pinned below `bpffs`, of this layout. The caller closes them. */
export function pinnedMaps(bpffs: string): Map<MapName, BpfMap> {
  const generation = generationFolder(bpffs);
  const maps = new Map<MapName, BpfMap>();
  for (const name of GENERATION_MAPS) openInto(maps, name, tablePin(generation, name));
  for (const name of KEPT_MAPS) openInto(maps, name, keptPin(bpffs, name));
  return maps;
}

/** All of them, or an error that names what is missing. */
export function complete(
  maps: Map<MapName, BpfMap>,
  names: readonly MapName[] = [...GENERATION_MAPS, ...KEPT_MAPS],
): Maps {
  const missing = names.filter((name) => !maps.has(name));
  if (missing.length > 0) {
    throw new Error(
      `pins are missing: ${missing.join(", ")}. What is attached works on; ` +
        "only `kmesh down` and a new start make them again.",
    );
  }
  return Object.fromEntries(maps) as Maps;
}

function openInto(maps: Map<MapName, BpfMap>, name: MapName, path: string): void {
  if (existsSync(path)) maps.set(name, openTable(name, path));
}

/** Throws an Error that names the pin when it is not the map that has to be there. */
function openTable(name: MapName, path: string): BpfMap {
  const wanted = LAYOUTS[name];
  // Of a program or a link the numbers are others as well.
  const map = BpfMap.fromPin(path);
  const { type, keySize, valueSize } = map.info;
  if (type === wanted.type && keySize === wanted.keySize && valueSize === wanted.valueSize) return map;
  map.close();
  throw new Error(
    `${path} is not kmesh's: it is no ${wanted.type} with keys of ${wanted.keySize} and values of ${wanted.valueSize} ` +
      "bytes. What is attached works on. Find out what pinned it there; `kmesh down` and a new start make all anew.",
  );
}

function isOurs(link: string): boolean {
  return (HOOK_ORDER as readonly string[]).includes(link);
}

/** Loads the programs over what is pinned, adds the maps that are not, and pins all that is new. */
function build(
  bpffs: string,
  maps: Map<MapName, BpfMap>,
  code: Code,
  adopted: boolean,
): Map<Hook, BpfProgram> {
  const programs = loadPrograms(code, maps);
  const generation = generationFolder(bpffs);
  pinKept(bpffs, maps);
  if (adopted) pinPrograms(programFolder(generation, code.hash), programs);
  else pinGeneration(generation, maps, programs, code.hash);
  return programs;
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

function pinPrograms(folder: string, programs: Map<Hook, BpfProgram>): void {
  const building = unfinished(folder);
  unpin(building);
  mkdirSync(building, { recursive: true });
  for (const [hook, program] of programs) {
    program.pin(join(building, hook));
    faultPoint("pin.programs");
  }
  renameSync(building, folder);
}

function pinnedPrograms(folder: string): Map<Hook, BpfProgram> | undefined {
  if (!existsSync(folder)) return undefined;
  return new Map(HOOK_ORDER.map((hook) => [hook, BpfProgram.fromPin(join(folder, hook))]));
}

/** True when the hook runs `program` only since this call. */
function point(bpffs: string, root: string, hook: Hook, program: BpfProgram): boolean {
  const held = pinnedLink(bpffs, hook);
  const info = held?.info();
  if (held && info && isAlive(info)) {
    const changed = info.programId !== program.info.id;
    if (changed) held.update(program);
    held.close();
    return changed;
  }
  held?.close();
  if (held) unpin(linkPin(bpffs, hook));
  const link = CgroupLink.attach(program, root, hook);
  try {
    faultPoint("link.attached");
    link.pin(linkPin(bpffs, hook));
  } finally {
    // Without its pin it is gone with this, so that the next try does not attach a second one.
    link.close();
  }
  return true;
}
