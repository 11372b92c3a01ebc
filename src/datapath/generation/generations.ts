/** The pinned generations: one for each layout of tables. The live one is the one that the hooks' programs read. */
import { basename, join } from "node:path";
import { listPins, unpin } from "../../kernel/bpffs.ts";
import type { CgroupLink, Hook, LinkInfo } from "../../kernel/link.ts";
import { BpfProgram } from "../../kernel/object.ts";
import { type Pinned, pinnedAt } from "../../kernel/pinned.ts";
import { ABI_ID } from "../tables/layout.gen.ts";
import { ownLink } from "./pin-ownership.ts";
import { completeFolders, generationFolder, isLayout, linkPin, tablePin, unfinishedFolders } from "./pins.ts";

export interface FoundGeneration {
  /** The layout of its tables, which names its folder. */
  abi: string;
  /** Whether its tables decide connect(). During a flip two generations do. */
  live: boolean;
}

/** The live tables belong to a version with another layout. */
export class ForeignGeneration extends Error {
  constructor(bpffs: string, abi: string) {
    super(
      `connections are governed by the tables of another kmesh version (layout ${abi} in ${bpffs}; this one reads ` +
        `${ABI_ID}). Ask that version's executable; \`kmesh run\` of this one takes over from it.`,
    );
    this.name = "ForeignGeneration";
  }
}

/** The layout of live tables whose pins are all gone. */
export const UNKNOWN = "unknown";

/** The complete generations below `bpffs`, and UNKNOWN if live tables have no pin left. Throws KernelError. */
export function generationsAt(bpffs: string): FoundGeneration[] {
  const running = (["connect4", "connect6"] as const).flatMap((hook) => runningProgram(bpffs, hook) ?? []);
  const orphans = new Set(running);
  const layouts = completeFolders(join(bpffs, "gen")).filter(isLayout);
  const found = layouts.map((abi): FoundGeneration => {
    const own = running.filter(readersOf(bpffs, abi));
    for (const program of own) orphans.delete(program);
    return { abi, live: own.length > 0 };
  });
  return orphans.size > 0 ? [...found, { abi: UNKNOWN, live: true }] : found;
}

/** The layout of the live tables, if it differs from this build's. */
export function foreignGovernor(bpffs: string): string | undefined {
  const all = generationsAt(bpffs);
  const live = all.filter((generation) => generation.live);
  const candidates = live.length > 0 ? live : all;
  return candidates.some(({ abi }) => abi === ABI_ID) ? undefined : candidates[0]?.abi;
}

/** Removes a generation that no hook reads. */
export function removeGeneration(bpffs: string, abi: string): void {
  unpin(generationFolder(bpffs, abi));
}

/** Removes incomplete generations of starts that died. Only the holder of the locks may call it. */
export function removeUnfinished(bpffs: string): void {
  const generations = join(bpffs, "gen");
  for (const path of unfinishedFolders(generations)) if (isLayout(basename(path))) unpin(path);
  for (const abi of completeFolders(generations).filter(isLayout)) {
    for (const path of unfinishedFolders(join(generations, abi, "programs"))) unpin(path);
  }
}

/** Whether a link is attached. A detached link stays pinned and does nothing. */
export function isAlive(link: LinkInfo): boolean {
  return link.cgroupId !== 0n;
}

/** kmesh's link of a hook, of any version; undefined if there is none. The caller closes it. */
export function pinnedLink(bpffs: string, hook: Hook): CgroupLink | undefined {
  return ownLink(linkPin(bpffs, hook), hook);
}

/** A loaded program, by ids. */
export interface ProgramIds {
  id: number;
  /** The ids of its maps. */
  maps: number[];
}

/** Undefined when the hook runs no program of kmesh. */
export function runningProgram(bpffs: string, hook: Hook): ProgramIds | undefined {
  using link = pinnedLink(bpffs, hook);
  const info = link?.info();
  if (!info || !isAlive(info)) return undefined;
  using program = BpfProgram.fromId(info.programId);
  return { id: program.info.id, maps: program.mapIds() };
}

/**
 * Tells of a program whether it reads the tables of a layout, by any of their pins or its own pin. Looks at each pin at most
 * once, when the first program needs it.
 */
export function readersOf(bpffs: string, abi: string): (program: ProgramIds) => boolean {
  const seen: Pinned[] = [];
  const unseen = pinsOf(generationFolder(bpffs, abi));
  return ({ id, maps }) => {
    const isOf = ({ kind, id: pinned }: Pinned) =>
      kind === "map" ? maps.includes(pinned) : kind === "program" && pinned === id;
    if (seen.some(isOf)) return true;
    for (let next = unseen.next(); !next.done; next = unseen.next()) {
      seen.push(next.value);
      if (isOf(next.value)) return true;
    }
    return false;
  };
}

/** Every layout has the first table. */
function* pinsOf(folder: string): Generator<Pinned, undefined> {
  const first = tablePin(folder, "settings");
  const found = pinnedAt(first);
  if (found) yield found;
  for (const path of [...listPins(join(folder, "tables")), ...listPins(join(folder, "programs"))]) {
    const pinned = path === first ? undefined : pinnedAt(path);
    if (pinned) yield pinned;
  }
}
