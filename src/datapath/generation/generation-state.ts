/** The pinned generations of all versions, and the live one. */
import { join } from "node:path";
import type { Hook } from "../../kernel/link.ts";
import { pinnedAt } from "../../kernel/pinned.ts";
import { generationsAt, runningProgram, UNKNOWN } from "./generations.ts";
import { completeFolders, generationFolder, programFolder } from "./pins.ts";
import type { GenerationName } from "./step.ts";

/** Live generations. */
const DECIDING = ["connect4", "connect6"] as const satisfies readonly Hook[];

export interface GenerationState {
  /** The generations of connect4 and connect6: none, one, or two during a flip (connect4's first). */
  live: GenerationName[];
  /** The other complete generations. */
  others: GenerationName[];
}

/** Reads the pins below `bpffs`; unnamed ones are left out. Throws KernelError. */
export function generationStateAt(bpffs: string): GenerationState {
  const found = generationsAt(bpffs)
    .filter(({ abi }) => abi !== UNKNOWN)
    .map(({ abi, live }) => ({ abi, live, codes: codesOf(bpffs, abi) }));
  const live: GenerationName[] = [];
  for (const hook of DECIDING) {
    const running = runningProgram(bpffs, hook);
    for (const { abi, codes } of running ? found.filter((each) => each.live) : []) {
      const code = codes.find((each) => programId(bpffs, abi, each, hook) === running?.id);
      if (code === undefined || live.some((each) => each.abi === abi && each.code === code)) continue;
      live.push({ abi, code });
    }
  }
  // The programs' own pins are gone: identify the tables by the maps that they use.
  for (const { abi } of found.filter((each) => each.live))
    if (!live.some((each) => each.abi === abi)) live.push({ abi });
  const others = found
    .filter((each) => !each.live)
    .map(({ abi, codes: [code, ...more] }) =>
      code === undefined || more.length > 0 ? { abi } : { abi, code },
    );
  return { live, others };
}

function codesOf(bpffs: string, abi: string): string[] {
  return completeFolders(join(generationFolder(bpffs, abi), "programs"));
}

function programId(bpffs: string, abi: string, code: string, hook: Hook): number | undefined {
  const pinned = pinnedAt(join(programFolder(generationFolder(bpffs, abi), code), hook));
  return pinned?.kind === "program" ? pinned.id : undefined;
}
