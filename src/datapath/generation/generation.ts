/** A generation in the kernel: tables and programs that are built and pinned once, and adopted by every later start. */

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
  /** False when it was just built, with empty tables. */
  readonly adopted: boolean;
  readonly #bpffs: string;
  readonly #programs: Map<Hook, BpfProgram>;
  /** The folders that this process has pinned and that are not live yet; without keep/. */
  readonly #built: string | undefined;
  /** The name of this build's programs, among others over the same tables. */
  readonly code: string;
  #others: FoundGeneration[];
  /** Open links, so that hooks stay attached when their pins are removed; they are then pinned again. */
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
      // No program uses the names. Bind them to a program, so that a start finds them by it.
      for (const program of programs.values()) {
        const held = new Set(program.mapIds());
        for (const name of [...NAME_MAPS, ...AGENT_MAPS])
          if (!held.has(tables.maps[name].info.id)) program.bind(tables.maps[name]);
      }
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
   * Adopts the pins below `bpffs`, or loads `code` and pins an empty generation beside those of other layouts; attaches
   * nothing. Removes incomplete generations, repairs removed pins, and moves foreign pins to aside/, with lines in `log`.
   * `announce` is called before a build, which is faster with `preloaded`. Throws KernelError, and an Error that names a pin
   * which is lost; existing pins stay.
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
    // A link that lay at another hook's path is in aside/ now.
    if (done.length > 0) for (const line of nameLinks(bpffs)) log(line);
    const opened = new OpenHandles();
    try {
      return Generation.#openWhole(bpffs, announce, log, code, preloaded, opened);
    } catch (error) {
      opened.closeAll();
      throw error;
    }
  }

  /** Opens the pins. Adds each descriptor to `opened`, for an error in a later step. */
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

  /** The present generations of other layouts. */
  get others(): Others {
    if (this.#others.some(({ live }) => live)) return "live";
    return this.#others.length > 0 ? "kept" : "none";
  }

  /** Their layouts, the live ones first. */
  get otherLayouts(): string[] {
    return [...this.#others].sort((a, b) => Number(b.live) - Number(a.live)).map(({ abi }) => abi);
  }

  /** Their layouts without live ones. */
  get keptLayouts(): string[] {
    return this.#others.filter(({ live }) => !live).map(({ abi }) => abi);
  }

  /** Removes another layout's generation. Throws when it is live. */
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

  /** Whether hooks run other programs, which `attach` would replace. */
  get replaces(): boolean {
    return runOthers(this.#bpffs, (hook) => this.#programs.get(hook)?.info.id);
  }

  /** The tag of each hook's program, which identifies its instructions. */
  get tags(): Map<Hook, string> {
    return new Map([...this.#programs].map(([hook, program]) => [hook, program.info.tag]));
  }

  /** Whether at least one hook reads these tables. Then they are filled. */
  get live(): boolean {
    return generationsAt(this.#bpffs).some(({ abi, live }) => abi === ABI_ID && live);
  }

  /** Attaches the hooks whose link is gone or was detached. Returns them. Only for filled tables. */
  relink(root: string): Hook[] {
    const lost = HOOK_ORDER.filter((hook) => !this.#isLinked(hook));
    if (lost.length > 0) mkdirSync(join(this.#bpffs, "links"), { recursive: true });
    return lost.filter((hook) => this.#point(root, hook));
  }

  /**
   * Damage of the pins and links since they were made. With `attached` every link is expected, otherwise only those that
   * were found. An inaccessible path counts as damage.
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
   * Pins removed objects again, up to the bpffs itself, from the descriptors of this process; they were never detached.
   * Foreign pins in their places are moved to aside/. Inaccessible paths stay. Returns one line for each repair and each
   * failure. Throws without a bpffs.
   */
  repin(): { done: string[]; failed: string[] } {
    remakeBpffs(this.#bpffs);
    // Kept generations are lost then.
    this.#others = this.#others.filter(
      ({ abi, live }) => live || existsSync(generationFolder(this.#bpffs, abi)),
    );
    return repairPins(this.#bpffs, this.pinFaults(false));
  }

  /** The ids of the attached links. */
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

  /** All objects with a pin, as descriptors. */
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
        // Detached links are attached again instead.
        if (!isAlive(info)) return [];
        const path = linkPin(this.#bpffs, hook);
        return [{ path, part: { kind: "link", hook }, id: info.id, pin: (at) => link.pin(at) }];
      }),
    ];
  }

  /** Whether every hook has a link, with any program: the pinned state governs, or did until its links were detached. */
  get linked(): boolean {
    return HOOK_ORDER.every((hook) => this.#links.has(hook));
  }

  /**
   * Gives every hook this generation's program: creates missing links at the cgroup2 root `root` and updates the others.
   * Then removes hooks that only another version has. Returns the changed hooks.
   */
  attach(root: string): Hook[] {
    const folder = join(this.#bpffs, "links");
    mkdirSync(folder, { recursive: true });
    const changed = HOOK_ORDER.filter((hook) => {
      faultPoint("flip.hook");
      return this.#point(root, hook);
    });
    faultPoint("flip.hooks");
    // A generation without pins ends with its last hook.
    this.#others = this.#others.flatMap(({ abi }) => (abi === UNKNOWN ? [] : [{ abi, live: false }]));
    this.#removeRest();
    return changed;
  }

  /** Returns true when this call changed the hook's program. */
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
    // The link was detached. `repin` handles other pins there.
    unpinLink(path);
    const link = CgroupLink.attach(program, root, hook);
    try {
      faultPoint("link.attached");
      link.pin(path);
    } catch (error) {
      // The link has no pin, so closing it detaches it, and the next attempt attaches only one.
      link.close();
      throw error;
    }
    this.#links.set(hook, link);
    return true;
  }

  /** Completes a flip that was interrupted after its last hook: removes the rest. */
  finishFlip(): void {
    if (this.attached) this.#removeRest();
  }

  /** Removes hooks that only another version has, and unpins programs over the same tables that no hook runs. */
  #removeRest(): void {
    const links = join(this.#bpffs, "links");
    for (const name of readdirSync(links)) if (!ownsPins(name)) unpinLink(join(links, name));
    faultPoint("remove.programs");
    const programs = join(generationFolder(this.#bpffs), "programs");
    for (const name of completeFolders(programs)) if (name !== this.code) unpin(join(programs, name));
  }

  /** Unpins the generation that this process has built, because its programs failed and no hook runs them. */
  discard(): void {
    if (this.#built === undefined || (!this.adopted && this.live)) return;
    unpin(this.#built);
  }

  /** Closes descriptors; unpins and detaches nothing. */
  close(): void {
    for (const link of this.#links.values()) link.close();
    for (const program of this.#programs.values()) program.close();
    this.tables.close();
  }
}

/** Descriptors of a generation that is being opened, to close them after an error. Closing one twice is allowed. */
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

/** Whether hooks run programs of another version than `code`. Throws KernelError. */
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

/** Removes a link if it is kmesh's. */
function unpinLink(path: string): void {
  using link = ownLink(path);
  if (link) unpin(path);
}
