/** Runs `kmesh demo`: moves into a namespace, plays the script on the stage, and cleans up. */

import type { Mode } from "../istiod/stream/types.ts";
import { loopbackUp, unshareNetns } from "../kernel/netns.ts";
import { execSelf } from "../kernel/process.ts";
import { selfCommand } from "../runtime/self.ts";
import { type DemoReport, playScript, type ScriptOptions } from "./script.ts";
import { Stage, sweepDeadStages } from "./stage.ts";

/**
 * Moves into a new network namespace and executes this program in it, as `kmesh ARGS`. Only a new start has no thread in
 * the old namespace. Throws KernelError; does not return otherwise.
 */
export function enterStage(args: readonly string[]): never {
  sweepDeadStages();
  unshareNetns();
  loopbackUp();
  return execSelf([...selfCommand(), ...args], process.env);
}

export interface DemoRun {
  report: DemoReport;
  /** Things that could not be removed, with the reasons. */
  left: string[];
}

/**
 * Plays the demo in this process's network namespace, and cleans up in any case. Before that it waits for `afterwards`,
 * where `--keep` waits. `signal` ends it at any point.
 */
export async function playDemo(
  options: ScriptOptions & { mode: Mode },
  signal: AbortSignal,
  afterwards: (stage: Stage, report: DemoReport) => Promise<void>,
): Promise<DemoRun> {
  const stage = new Stage(undefined, options.mode);
  const aborted = new Promise<never>((_, reject) => {
    signal.addEventListener("abort", () => reject(new Aborted()), { once: true });
  });
  aborted.catch(() => {});
  let left: string[] = [];
  let report: DemoReport;
  try {
    report = await Promise.race([playScript(stage, options), aborted]);
    await Promise.race([afterwards(stage, report), aborted]).catch((error) => {
      // The report is complete: Ctrl-C is the normal end of --keep.
      if (!(error instanceof Aborted)) throw error;
    });
  } finally {
    left = await stage.clear();
  }
  return { report, left };
}

/** The operator ended the demo before its report. */
export class Aborted extends Error {
  constructor() {
    super("ended before its end; everything is cleaned up");
    this.name = "Aborted";
  }
}
