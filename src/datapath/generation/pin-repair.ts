/**
 * Pins that are missing, and others that lie where ours belong. What is lost is found by what still holds it: programs
 * (owners.ts), and a running agent, which holds everything.
 */

import { lstatSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { reasonOf } from "../../errors/reason.ts";
import { KernelError } from "../../kernel/error.ts";
import type { Hook } from "../../kernel/link.ts";
import { BpfMap } from "../../kernel/maps.ts";
import { formatPinned, type Pinned, pinnedAt } from "../../kernel/pinned.ts";
import { GENERATION_MAPS, isNameMap, KEPT_MAPS, type MapName } from "../tables/tables.ts";
import { isAlive, type ProgramIds } from "./generations.ts";
import { type MapOwners, mapOwnersAt, mapsOf } from "./map-owners.ts";
import { ownLink, ownProgram, ownTable } from "./pin-ownership.ts";
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

/** What belongs at a path. */
export type Part =
  | { kind: "folder" }
  | { kind: "link" | "program"; hook: Hook }
  | { kind: "table"; name: MapName };

/** One of our paths at which not that lies which belongs there. */
export interface PinFault {
  path: string;
  part: Part;
  /** What lies there instead; absent when nothing does, and when it is a link of ours that was detached. */
  found?: Pinned;
  /** The link is ours and runs nothing any more. */
  detached?: true;
  /** Why the path can't be looked at: what lies there may be ours and stays. */
  unreadable?: string;
  /** Pins what belongs there; absent when that is lost, or made by other means. */
  pin?(): void;
}

/** What belongs at a path, and is held. */
export interface Held {
  path: string;
  part: Part;
  /** The kernel's number. */
  id: number;
  pin(path: string): void;
}

/** As pinned things are called, but for tables. */
const KINDS = { folder: "folder", link: "link", program: "program", table: "map" } as const;

/** How often the same path is cleared for ours before something else has to be done about it. */
const ASIDES = 8;

/** Whether `held` lies where it belongs: [] when it does. Throws nothing: see `faultsAt`. */
export function faultsOf({ path, part, id, pin }: Held): PinFault[] {
  return faultsAt(path, part, () => {
    const found = pinnedAt(path);
    if (found?.kind === KINDS[part.kind] && found.id === id) return [];
    return [{ path, part, ...(found ? { found } : {}), pin: () => pin(path) }];
  });
}

/**
 * What `look` finds at one path. A path that the kernel does not let us look at becomes a fault of its own, so that it
 * holds up no other.
 */
export function faultsAt(path: string, part: Part, look: () => PinFault[]): PinFault[] {
  try {
    return look();
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return [{ path, part, unreadable: error.message }];
  }
}

/** The faults of folders: what is below them has to be looked at when they are there. */
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
 * What is wrong with the pins below `bpffs`, as far as it can be told without an agent's memory. Links count as missing if
 * one is there, or if `filled` says that the tables hold a mesh. Throws KernelError.
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
 * Puts right what can be: what lies at a path of ours is moved to `aside`, never removed, and ours is pinned there. Gives
 * what was done and what could not be, a line each. Never throws.
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
 * Gives links of kmesh's that somebody renamed, or that were moved aside, their names back, where nothing else has them:
 * with a second link a hook would run twice. Gives a line for each. Throws KernelError, and what the file system says.
 */
export function nameLinks(bpffs: string): string[] {
  const done: string[] = [];
  const folders = [join(bpffs, "links"), join(bpffs, ASIDE)];
  if (pinnedAt(join(bpffs, "links"))?.kind !== "folder") return done;
  const rename = (path: string): boolean => {
    const hook = HOOK_ORDER.find((each) => {
      using link = path === linkPin(bpffs, each) ? undefined : ownLink(path, each);
      return link !== undefined && isAlive(link.info());
    });
    if (hook === undefined || pinnedAt(linkPin(bpffs, hook))) return false;
    renameSync(path, linkPin(bpffs, hook));
    done.push(`the link of ${hook} was called ${path}: it has its name again`);
    return true;
  };
  // One that gets its name back may clear another's.
  while (folders.flatMap(entries).some(rename));
  return done;
}

function entries(folder: string): string[] {
  return pinnedAt(folder)?.kind === "folder" ? readdirSync(folder).map((name) => join(folder, name)) : [];
}

function setAside(bpffs: string, path: string): string {
  const folder = join(bpffs, ASIDE);
  // The folder itself may be what has to be cleared.
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
        // Before a first start is over none has to be there, and other versions may do without one that is new.
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
