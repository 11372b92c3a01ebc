/** A generation in the kernel: its tables and programs, built and pinned once, adopted by every later start. */

import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { ensureBpffs, remakeBpffs, unpin } from "../../kernel/bpffs.ts";
import { CgroupLink, type Hook } from "../../kernel/link.ts";
import type { BpfProgram } from "../../kernel/object.ts";
import { pinnedAt } from "../../kernel/pinned.ts";
import { faultPoint } from "../../runtime/fault.ts";
import type { Others } from "../mesh-tables/others.ts";
import { ABI_ID } from "../tables/layout.gen.ts";
import { AGENT_MAPS, GENERATION_MAPS, KEPT_MAPS, type MapName, NAME_MAPS, Tables } from "../tables/tables.ts";
import { load, pinNew } from "./build.ts";
import { generationStateAt } from "./generation-state.ts";
import {
  type FoundGeneration,
  generationsAt,
  isAlive,
  pinnedLink,
  removeGeneration,
  removeUnfinished,
  UNKNOWN,
} from "./generations.ts";
import type { LinkIds } from "./hidden-links.ts";
import { ownLink, ownProgram } from "./pin-ownership.ts";
import {
  faultsAt,
  faultsOf,
  folderFaults,
  type Held,
  nameLinks,
  type PinFault,
  pinFaults,
  repairPins,
} from "./pin-repair.ts";
import { complete, findUseful, knownBefore, pinnedPrograms } from "./pinned.ts";
import {
  completeFolders,
  generationFolder,
  HOOK_ORDER,
  keptPin,
  linkPin,
  programFolder,
  tablePin,
} from "./pins.ts";
import { type Code, type LoadedAhead, ownCode } from "./programs.ts";
import type { Announce, GenerationName } from "./step.ts";

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
  /** Held, so that hooks run on when their pins are removed: they are pinned again then. */
  readonly #links = new Map<Hook, CgroupLink>();

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
    try {
      for (const hook of HOOK_ORDER) {
        const link = pinnedLink(bpffs, hook);
        if (link) this.#links.set(hook, link);
      }
      // No program uses them. Whatever holds a program holds the names, too, and a start finds them by it.
      for (const program of programs.values())
        for (const name of [...NAME_MAPS, ...AGENT_MAPS]) program.bind(tables.maps[name]);
    } catch (error) {
      for (const link of this.#links.values()) link.close();
      throw error;
    }
    this.#bpffs = bpffs;
    this.tables = tables;
    this.#programs = programs;
    this.adopted = adopted;
    this.code = code;
    this.#others = others;
  }

  /**
   * Adopts what is pinned below `bpffs`, or loads `code` and pins an empty generation, beside those of other layouts when there
   * are any; attaches nothing. What an earlier start left half built is removed, pins that somebody removed are made
   * again, and what somebody else pinned in their place is moved to aside/: `log` is told.
   * `announce` hears of it before it builds, which takes less with a `preloaded`.
   * Throws KernelError, and an Error that names the pin which is missing for good; what was pinned before stays as it was.
   */
  static open(
    bpffs: string,
    announce: Announce = () => {},
    log: (line: string) => void = () => {},
    code: Code = ownCode(),
    preloaded?: LoadedAhead,
  ): Generation {
    ensureBpffs(bpffs);
    removeUnfinished(bpffs);
    for (const line of nameLinks(bpffs)) log(line);
    const { done, failed } = repairPins(bpffs, pinFaults(bpffs));
    for (const line of done) log(line);
    if (failed.length > 0) throw new Error(failed.join("; "));
    // A link that lay where another's belongs.
    for (const line of nameLinks(bpffs)) log(line);
    const opened = new OpenHandles();
    try {
      return Generation.#openWhole(bpffs, announce, log, code, preloaded, opened);
    } catch (error) {
      opened.closeAll();
      throw error;
    }
  }

  /** Adds to `opened` each descriptor that a later step may leave behind. */
  static #openWhole(
    bpffs: string,
    announce: Announce,
    log: (line: string) => void,
    code: Code,
    preloaded: LoadedAhead | undefined,
    opened: OpenHandles,
  ): Generation {
    const { found, maps } = findUseful(bpffs);
    opened.add(maps);
    const folder = generationFolder(bpffs);
    const adopted = found.some(({ abi }) => abi === ABI_ID);
    const others = found.filter(({ abi }) => abi !== ABI_ID);
    if (adopted) complete(maps);
    else if (others.length > 0) complete(maps, knownBefore(bpffs));
    if (others.some(({ abi }) => abi === UNKNOWN))
      log("the tables that govern have lost all of their pins: they govern on until new ones are filled");
    const pinned = pinnedPrograms(programFolder(folder, code.hash));
    opened.add(pinned);
    if (adopted && pinned.size === HOOK_ORDER.length) {
      const tables = opened.addTables(new Tables(complete(maps)));
      return new Generation(bpffs, tables, pinned, adopted, code.hash, others, undefined);
    }
    const [from] = generationStateAt(bpffs).live;
    announce({ name: "build", ...(from ? { from } : {}), to: { abi: ABI_ID, code: code.hash } });
    const loaded = load(code, maps, preloaded);
    opened.add(loaded.maps);
    opened.add(loaded.programs);
    pinNew(bpffs, loaded, code, adopted, pinned);
    announce(undefined);
    const built = !adopted ? folder : pinned.size === 0 ? programFolder(folder, code.hash) : undefined;
    const tables = opened.addTables(new Tables(complete(loaded.maps)));
    return new Generation(bpffs, tables, loaded.programs, adopted, code.hash, others, built);
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

  /** Those of them that connect() does not read. */
  get keptLayouts(): string[] {
    return this.#others.filter(({ live }) => !live).map(({ abi }) => abi);
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
      const info = this.#links.get(hook)?.info();
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
    const lost = HOOK_ORDER.filter((hook) => !this.#isLinked(hook));
    if (lost.length > 0) mkdirSync(join(this.#bpffs, "links"), { recursive: true });
    return lost.filter((hook) => this.#point(root, hook));
  }

  /**
   * What somebody has done to the pins since they were made, and to the links: those that were found, all if `attached`.
   * A path that can't be looked at is a fault of its own.
   */
  pinFaults(attached: boolean): PinFault[] {
    const off = HOOK_ORDER.filter((hook) => !this.#isLinked(hook));
    return [
      ...folderFaults(this.#bpffs),
      ...off.flatMap((hook): PinFault[] => {
        const path = linkPin(this.#bpffs, hook);
        const part = { kind: "link", hook } as const;
        return faultsAt(path, part, () => {
          using own = ownLink(path, hook);
          const found = own ? undefined : pinnedAt(path);
          if (found) return [{ path, part, found }];
          return attached || this.#links.has(hook) ? [{ path, part, detached: true }] : [];
        });
      }),
      ...this.#held().flatMap(faultsOf),
    ];
  }

  /**
   * Pins again what somebody unpinned, up to the bpffs itself, from what this process holds; nothing was ever detached by
   * that. What was pinned in its place is moved to aside/; what can't be looked at stays. Gives what was done and what could
   * not be, a line each. Throws where there is no bpffs.
   */
  repin(): { done: string[]; failed: string[] } {
    remakeBpffs(this.#bpffs);
    // Of generations that were only kept nothing is left then.
    this.#others = this.#others.filter(
      ({ abi, live }) => live || existsSync(generationFolder(this.#bpffs, abi)),
    );
    return repairPins(this.#bpffs, this.pinFaults(false));
  }

  /** The kernel's numbers of the links that run. */
  get linkIds(): LinkIds {
    const ids: LinkIds = {};
    for (const [hook, link] of this.#links) {
      const info = link.info();
      if (isAlive(info)) ids[hook] = info.id;
    }
    return ids;
  }

  #isLinked(hook: Hook): boolean {
    const info = this.#links.get(hook)?.info();
    return info !== undefined && isAlive(info);
  }

  /** Everything that has a pin, and is held. */
  #held(): Held[] {
    const generation = generationFolder(this.#bpffs);
    const { maps } = this.tables;
    const table = (name: MapName, path: string): Held => ({
      path,
      part: { kind: "table", name },
      id: maps[name].info.id,
      pin: (at) => maps[name].pin(at),
    });
    return [
      ...KEPT_MAPS.map((name) => table(name, keptPin(this.#bpffs, name))),
      ...GENERATION_MAPS.map((name) => table(name, tablePin(generation, name))),
      ...[...this.#programs].map(
        ([hook, program]): Held => ({
          path: join(programFolder(generation, this.code), hook),
          part: { kind: "program", hook },
          id: program.info.id,
          pin: (at) => program.pin(at),
        }),
      ),
      ...[...this.#links].flatMap(([hook, link]): Held[] => {
        const info = link.info();
        // Those that were detached are attached anew instead.
        if (!isAlive(info)) return [];
        const path = linkPin(this.#bpffs, hook);
        return [{ path, part: { kind: "link", hook }, id: info.id, pin: (at) => link.pin(at) }];
      }),
    ];
  }

  /** Whether every hook has a link, whichever program runs there: what is pinned governs, or did until someone detached it. */
  get linked(): boolean {
    return HOOK_ORDER.every((hook) => this.#links.has(hook));
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
      return this.#point(root, hook);
    });
    faultPoint("flip.hooks");
    // What had no pins is gone with its last hook.
    this.#others = this.#others.flatMap(({ abi }) => (abi === UNKNOWN ? [] : [{ abi, live: false }]));
    this.#removeRest();
    return changed;
  }

  /** True when the hook runs this generation's program only since this call. */
  #point(root: string, hook: Hook): boolean {
    const program = this.#programs.get(hook);
    if (!program) return false;
    const held = this.#links.get(hook);
    const info = held?.info();
    if (held && info && isAlive(info)) {
      const changed = info.programId !== program.info.id;
      if (changed) held.update(program);
      return changed;
    }
    held?.close();
    this.#links.delete(hook);
    const path = linkPin(this.#bpffs, hook);
    // Detached, that is; anything else there is left to `repin`.
    unpinLink(path);
    const link = CgroupLink.attach(program, root, hook);
    try {
      faultPoint("link.attached");
      link.pin(path);
    } catch (error) {
      // Without its pin it is gone with this, so that the next try does not attach a second one.
      link.close();
      throw error;
    }
    this.#links.set(hook, link);
    return true;
  }

  /** After a flip that may have broken off behind its last hook: removes what it had not removed yet. */
  finishFlip(): void {
    if (this.attached) this.#removeRest();
  }

  /** Hooks that only another version has end; programs over the same tables that no hook runs any more are unpinned. */
  #removeRest(): void {
    const links = join(this.#bpffs, "links");
    for (const name of readdirSync(links)) if (!ownsPins(name)) unpinLink(join(links, name));
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
    for (const link of this.#links.values()) link.close();
    for (const program of this.#programs.values()) program.close();
    this.tables.close();
  }
}

/** Descriptors of a generation that is being opened: closed when that fails. Closing one twice is no fault. */
class OpenHandles {
  readonly #maps: ReadonlyMap<string, { close(): void }>[] = [];
  #tables: Tables | undefined;

  /** The map may grow and change until `closeAll`. */
  add(handles: ReadonlyMap<string, { close(): void }>): void {
    this.#maps.push(handles);
  }

  addTables(tables: Tables): Tables {
    this.#tables = tables;
    return tables;
  }

  closeAll(): void {
    this.#tables?.discard();
    for (const handles of this.#maps) for (const handle of handles.values()) handle.close();
  }
}

/** Whether hooks run programs that are not `code`'s: those of another version. Throws KernelError. */
export function governedByOthers(bpffs: string, code: Code): boolean {
  const folder = programFolder(generationFolder(bpffs), code.hash);
  return runOthers(bpffs, (hook) => {
    using program = ownProgram(join(folder, hook), hook);
    return program?.info.id;
  });
}

function runOthers(bpffs: string, own: (hook: Hook) => number | undefined): boolean {
  return HOOK_ORDER.some((hook) => {
    using link = pinnedLink(bpffs, hook);
    const info = link?.info();
    return info !== undefined && isAlive(info) && info.programId !== own(hook);
  });
}

function ownsPins(link: string): boolean {
  return (HOOK_ORDER as readonly string[]).includes(link);
}

/** Only a link of kmesh's. */
function unpinLink(path: string): void {
  using link = ownLink(path);
  if (link) unpin(path);
}
