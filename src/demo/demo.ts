/** `kmesh demo`, from the operator's process to the stage and back. */

import type { Mode } from "../istiod/stream/types.ts";
import { loopbackUp, unshareNetns } from "../kernel/netns.ts";
import { execSelf } from "../kernel/process.ts";
import { selfCommand } from "../runtime/self.ts";
import { type DemoReport, playScript, type ScriptOptions } from "./script.ts";
import { Stage, sweepDeadStages } from "./stage.ts";

/**
 * Moves into a network namespace of its own and starts this program anew in it, as `kmesh ARGS`. Only a fresh start
 * has no thread in the old one. Throws KernelError; does not return otherwise.
 */
export function enterStage(args: readonly string[]): never {
  sweepDeadStages();
  unshareNetns();
  loopbackUp();
  return execSelf([...selfCommand(), ...args], process.env);
}

export interface DemoRun {
  report: DemoReport;
  /** What could not be removed afterwards, with the reason. */
  left: string[];
}

/**
 * Plays the demo in this process's network namespace and clears up whatever happens. `afterwards` is waited for
 * before that: `--keep` waits there for the end. `signal` ends it at any point.
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
      // The report is there: an end by Ctrl-C is how --keep is meant to end.
      if (!(error instanceof Aborted)) throw error;
    });
  } finally {
    left = await stage.clear();
  }
  return { report, left };
}

/** The operator ended the demo before it had anything to report. */
export class Aborted extends Error {
  constructor() {
    super("ended before its end; everything is cleaned up");
    this.name = "Aborted";
  }
}
