/**
 * The generations that lie side by side: each version of kmesh whose tables look different has one of its own. The live
 * one is the one that the hooks' programs read.
 */
import { join } from "node:path";
import { listPins, pinKind, unpin } from "../kernel/bpffs.ts";
import { CGROUP_LINK, CgroupLink, HOOKS, type Hook, type LinkInfo } from "../kernel/link.ts";
import { BpfProgram } from "../kernel/object.ts";
import { isOurs, pinnedId } from "./held.ts";
import { ABI_ID } from "./layout.gen.ts";
import { completeFolders, generationFolder, linkPin, tablePin, unfinishedFolders } from "./pins.ts";

/** Stands for the layout of tables that connect() reads and whose pins are all gone. */
export const UNKNOWN = "unknown";

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
  const running = (["connect4", "connect6"] as const).flatMap((hook) => runningAt(bpffs, hook));
  const found = completeFolders(join(bpffs, "gen")).map((abi) => ({
    abi,
    live: running.filter((program) => isOver(bpffs, abi, program)),
  }));
  const lost = running.some((program) => !found.some(({ live }) => live.includes(program)));
  return [
    ...found.map(({ abi, live }) => ({ abi, live: live.length > 0 })),
    ...(lost ? [{ abi: UNKNOWN, live: true }] : []),
  ];
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

/** The link of a hook, or undefined when there is none, or something that is not kmesh's. The caller closes it. */
export function pinnedLink(bpffs: string, hook: Hook): CgroupLink | undefined {
  const path = linkPin(bpffs, hook);
  if (pinKind(path) !== "link") return undefined;
  const link = CgroupLink.fromPin(path);
  const { type, attachType, programId } = link.info();
  if (type === CGROUP_LINK && attachType === HOOKS[hook]) {
    using program = BpfProgram.fromId(programId);
    if (isOurs(bpffs, program)) return link;
  }
  link.close();
  return undefined;
}

interface Running {
  id: number;
  maps: number[];
}

/** The hook's program, and the ids of the maps that it uses; [] when nothing runs there. */
function runningAt(bpffs: string, hook: Hook): Running[] {
  using link = pinnedLink(bpffs, hook);
  const info = link?.info();
  if (!info || !isAlive(info)) return [];
  using program = BpfProgram.fromId(info.programId);
  return [{ id: info.programId, maps: program.mapIds() }];
}

/** Whether a program reads the tables of that layout. One pin that is left of them tells it. */
function isOver(bpffs: string, abi: string, { id, maps }: Running): boolean {
  const generation = generationFolder(bpffs, abi);
  const isUsed = (path: string) => maps.includes(pinnedId(path) ?? 0);
  // Every layout has this map.
  if (isUsed(tablePin(generation, "settings"))) return true;
  if (listPins(join(generation, "tables")).some(isUsed)) return true;
  return listPins(join(generation, "programs")).some((path) => {
    if (pinKind(path) !== "program") return false;
    using program = BpfProgram.fromPin(path);
    return program.info.id === id;
  });
}
