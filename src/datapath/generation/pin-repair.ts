/**
 * Finds and repairs missing and foreign pins. Lost objects are found by their holders: programs (map-owners.ts), and a
 * running agent, which holds everything.
 */

import { lstatSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { reasonOf } from "../../errors/reason.ts";
import { KernelError } from "../../kernel/error.ts";
import { CgroupLink, HOOKS, type Hook } from "../../kernel/link.ts";
import { BpfMap } from "../../kernel/maps.ts";
import { formatPinned, openPinned, type Pinned, pinnedAt } from "../../kernel/pinned.ts";
import { GENERATION_MAPS, isNameMap, KEPT_MAPS, type MapName } from "../tables/tables.ts";
import { isAlive, type ProgramIds } from "./generations.ts";
import { type MapOwners, mapOwnersAt, mapsOf } from "./map-owners.ts";
import { isOwnLink, ownLink, ownProgram, ownTable } from "./pin-ownership.ts";
import {
  ASIDE,
  completeFolders,
  generationFolder,
  HOOK_ORDER,
  keptPin,
  linkPin,
  programFolder,
  tablePin,
} from "./pins.ts";

/** The object that belongs at a path. */
export type Part =
  | { kind: "folder" }
  | { kind: "link" | "program"; hook: Hook }
  | { kind: "table"; name: MapName };

/** A path without its object. */
export interface PinFault {
  path: string;
  part: Part;
  /** The foreign object there; absent for a missing pin and for a detached link of kmesh. */
  found?: Pinned;
  /** The link is kmesh's and was detached. */
  detached?: true;
  /** The reason why the path can't be examined. Its object may be kmesh's and stays. */
  unreadable?: string;
  /** Pins the object; absent when it is lost, or created in another way. */
  pin?(): void;
}

/** The object that belongs at a path, as a descriptor. */
export interface Held {
  path: string;
  part: Part;
  /** The kernel's id. */
  id: number;
  pin(path: string): void;
}

/** The name for messages; tables have their own. */
const KINDS = { folder: "folder", link: "link", program: "program", table: "map" } as const;

/** Most repairs of one path before the repair gives up. */
const ASIDES = 8;

/** The fault of `held`; [] when it is pinned at its path. Throws nothing: see `faultsAt`. */
export function faultsOf({ path, part, id, pin }: Held): PinFault[] {
  return faultsAt(path, part, () => {
    const found = pinnedAt(path);
    if (found?.kind === KINDS[part.kind] && found.id === id) return [];
    return [{ path, part, ...(found ? { found } : {}), pin: () => pin(path) }];
  });
}

/** The result of `look` for one path. An inaccessible path becomes a fault, so that it does not block other repairs. */
export function faultsAt(path: string, part: Part, look: () => PinFault[]): PinFault[] {
  try {
    return look();
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return [{ path, part, unreadable: error.message }];
  }
}

/** The faults of folders. Their content must be checked when the folders exist. */
export function folderFaults(bpffs: string): PinFault[] {
  const generation = generationFolder(bpffs);
  const programs = join(generation, "programs");
  const folders = [
    ...[ASIDE, "links", "keep", "gen"].map((name) => join(bpffs, name)),
    ...[generation, join(generation, "tables"), programs],
    ...completeFolders(programs).map((code) => join(programs, code)),
  ];
  const part: Part = { kind: "folder" };
  return folders.flatMap((path) =>
    faultsAt(path, part, () => {
      const found = pinnedAt(path);
      return found && found.kind !== "folder" ? [{ path, part, found }] : [];
    }),
  );
}

/**
 * The faults of the pins below `bpffs` that can be found without an agent. A missing link is a fault if another one exists,
 * or if the tables hold a mesh (`filled`). Throws KernelError.
 */
export function pinFaults(bpffs: string, filled = false): PinFault[] {
  const owners = mapOwnersAt(bpffs);
  return [
    ...folderFaults(bpffs),
    ...linkFaults(bpffs, filled),
    ...tableFaults(bpffs, owners),
    ...programFaults(bpffs),
  ];
}

/**
 * Repairs faults: moves a foreign object to `aside`, never removes it, and pins kmesh's object. Returns one line for each
 * repair and each failure. Never throws.
 */
export function repairPins(bpffs: string, faults: readonly PinFault[]): { done: string[]; failed: string[] } {
  const done: string[] = [];
  const failed: string[] = [];
  for (const { path, found, pin, unreadable } of faults) {
    try {
      if (unreadable !== undefined) {
        failed.push(unreadable);
        continue;
      }
      if (found)
        done.push(
          `${path} was ${formatPinned(found)}, which is not kmesh's: it lies in ${setAside(bpffs, path)} now`,
        );
      if (!pin) continue;
      mkdirSync(dirname(path), { recursive: true });
      pin();
      done.push(`pinned again: ${path}`);
    } catch (error) {
      failed.push(reasonOf(error));
    }
  }
  return { done, failed };
}

/**
 * Renames kmesh's links that were renamed or moved aside back to their paths, unless another object is there: with a
 * second link a hook would run twice. Returns one line for each. Throws KernelError and the file system's error.
 */
export function nameLinks(bpffs: string): string[] {
  const done: string[] = [];
  const folders = [join(bpffs, "links"), join(bpffs, ASIDE)];
  if (pinnedAt(join(bpffs, "links"))?.kind !== "folder") return done;
  const rename = (path: string): boolean => {
    const hook = strayHook(bpffs, path);
    if (hook === undefined || pinnedAt(linkPin(bpffs, hook))) return false;
    renameSync(path, linkPin(bpffs, hook));
    done.push(`the link of ${hook} was called ${path}: it has its name again`);
    return true;
  };
  // Renaming one link may free the path of another.
  while (folders.flatMap(entries).some(rename));
  return done;
}

/** The hook of a living link of kmesh's that is not pinned at the hook's path. */
function strayHook(bpffs: string, path: string): Hook | undefined {
  const fd = openPinned(path, "link");
  if (fd === undefined) return undefined;
  using link = CgroupLink.adopt(fd);
  const info = link.info();
  const hook = HOOK_ORDER.find((each) => HOOKS[each] === info.attachType);
  if (hook === undefined || path === linkPin(bpffs, hook) || !isAlive(info)) return undefined;
  return isOwnLink(link, hook) ? hook : undefined;
}

function entries(folder: string): string[] {
  return pinnedAt(folder)?.kind === "folder" ? readdirSync(folder).map((name) => join(folder, name)) : [];
}

function setAside(bpffs: string, path: string): string {
  const folder = join(bpffs, ASIDE);
  // The folder itself may be foreign.
  const base = relative(bpffs, path).replaceAll("/", "_");
  const parent = path === folder ? bpffs : folder;
  mkdirSync(parent, { recursive: true });
  for (let number = 1; number <= ASIDES; number++) {
    const target = join(parent, number === 1 ? `${base}${path === folder ? "_1" : ""}` : `${base}_${number}`);
    if (lstatSync(target, { throwIfNoEntry: false })) continue;
    renameSync(path, target);
    return target;
  }
  throw new Error(
    `something pins at ${path} again and again, where kmesh's own belongs: ${parent} has ${ASIDES} of them. ` +
      "Find out what it is and have it choose another path",
  );
}

function linkFaults(bpffs: string, filled: boolean): PinFault[] {
  const faults = HOOK_ORDER.flatMap((hook): PinFault[] => {
    const path = linkPin(bpffs, hook);
    const part: Part = { kind: "link", hook };
    return faultsAt(path, part, () => {
      using link = ownLink(path, hook);
      if (link) return isAlive(link.info()) ? [] : [{ path, part, detached: true }];
      const found = pinnedAt(path);
      return [{ path, part, ...(found ? { found } : {}) }];
    });
  });
  const none =
    faults.length === HOOK_ORDER.length &&
    faults.every(({ detached, unreadable }) => !detached && unreadable === undefined);
  return none && !filled ? faults.filter(({ found }) => found) : faults;
}

function tableFaults(bpffs: string, { all, own, built }: MapOwners): PinFault[] {
  const check = (names: readonly MapName[], programs: ProgramIds[], pathOf: (name: MapName) => string) => {
    const ids = mapsOf(programs, names);
    return names.flatMap((name): PinFault[] => {
      const path = pathOf(name);
      const part: Part = { kind: "table", name };
      const id = ids.get(name);
      if (id !== undefined) return faultsOf({ path, part, id, pin: (at) => pinMap(id, at) });
      return faultsAt(path, part, () => {
        using table = ownTable(path, name);
        if (table) return [];
        const found = pinnedAt(path);
        // Links may be missing before the first start is complete, and another version may lack a new one.
        const isDue = built || (all.length > 0 && isNameMap(name));
        return found || isDue ? [{ path, part, ...(found ? { found } : {}) }] : [];
      });
    });
  };
  const generation = generationFolder(bpffs);
  return [
    ...check(KEPT_MAPS, all, (name) => keptPin(bpffs, name)),
    ...(built ? check(GENERATION_MAPS, own, (name) => tablePin(generation, name)) : []),
  ];
}

function programFaults(bpffs: string): PinFault[] {
  const generation = generationFolder(bpffs);
  return completeFolders(join(generation, "programs")).flatMap((code) =>
    HOOK_ORDER.flatMap((hook): PinFault[] => {
      const path = join(programFolder(generation, code), hook);
      const part: Part = { kind: "program", hook };
      return faultsAt(path, part, () => {
        using program = ownProgram(path, hook);
        if (program) return [];
        const found = pinnedAt(path);
        return [{ path, part, ...(found ? { found } : {}) }];
      });
    }),
  );
}

function pinMap(id: number, path: string): void {
  using map = BpfMap.fromId(id);
  map.pin(path);
}
