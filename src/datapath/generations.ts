/**
 * The generations that lie side by side: each version of kmesh whose tables look different has one of its own. The live
 * one is the one that the hooks' programs read.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { unpin } from "../kernel/bpffs.ts";
import { CgroupLink, type Hook, type LinkInfo } from "../kernel/link.ts";
import { BpfMap } from "../kernel/maps.ts";
import { BpfProgram } from "../kernel/object.ts";
import { ABI_ID } from "./layout.gen.ts";
import { completeFolders, generationFolder, linkPin, tablePin, unfinishedFolders } from "./pins.ts";

export interface FoundGeneration {
  /** Names its folder: what its tables look like. */
  abi: string;
  /** Whether connect() is decided by its tables. In the middle of a flip this is so of two. */
  live: boolean;
}

/** What other generations there are: ids that they use must not come to mean something else. */
export type Others = "none" | "kept" | "live";

/** What governs was made by a kmesh whose tables look different. */
export class ForeignGeneration extends Error {
  constructor(bpffs: string, abi: string) {
    super(
      `connections are governed by the tables of another kmesh version (layout ${abi} in ${bpffs}; this one reads ` +
        `${ABI_ID}). Ask that version's executable; \`kmesh run\` of this one takes over from it.`,
    );
    this.name = "ForeignGeneration";
  }
}

/** The complete generations below `bpffs`. Throws KernelError. */
export function generationsAt(bpffs: string): FoundGeneration[] {
  const used = new Set((["connect4", "connect6"] as const).flatMap((hook) => mapsOf(bpffs, hook)));
  return completeFolders(join(bpffs, "gen")).map((abi) => ({ abi, live: used.has(settingsId(bpffs, abi)) }));
}

/** The layout of the tables that decide, when it is another than this build's. */
export function foreignGovernor(bpffs: string): string | undefined {
  const all = generationsAt(bpffs);
  const live = all.filter((generation) => generation.live);
  const candidates = live.length > 0 ? live : all;
  return candidates.some(({ abi }) => abi === ABI_ID) ? undefined : candidates[0]?.abi;
}

/** Removes a generation that no hook reads any more. */
export function removeGeneration(bpffs: string, abi: string): void {
  unpin(generationFolder(bpffs, abi));
}

/** Removes what a start that died has left half built. Only the agent that holds the locks may call it. */
export function removeUnfinished(bpffs: string): void {
  const generations = join(bpffs, "gen");
  for (const path of unfinishedFolders(generations)) unpin(path);
  for (const abi of completeFolders(generations)) {
    for (const path of unfinishedFolders(join(generations, abi, "programs"))) unpin(path);
  }
}

/** Whether a link still runs its program: one that was detached stays pinned and does nothing. */
export function isAlive(link: LinkInfo): boolean {
  return link.cgroupId !== 0n;
}

/** The link of a hook, or undefined when there is none. The caller closes it. */
export function pinnedLink(bpffs: string, hook: Hook): CgroupLink | undefined {
  const path = linkPin(bpffs, hook);
  return existsSync(path) ? CgroupLink.fromPin(path) : undefined;
}

/** Ids of the maps that the hook's program uses; [] when nothing runs there. */
function mapsOf(bpffs: string, hook: Hook): number[] {
  using link = pinnedLink(bpffs, hook);
  const info = link?.info();
  if (!info || !isAlive(info)) return [];
  using program = BpfProgram.fromId(info.programId);
  return program.mapIds();
}

/** Every layout has this map: its programs are known by it. */
function settingsId(bpffs: string, abi: string): number {
  const path = tablePin(generationFolder(bpffs, abi), "settings");
  if (!existsSync(path)) return 0;
  using map = BpfMap.fromPin(path);
  return map.info.id;
}
