/** The steps of a command that changes the machine. Each is printed before it is done. */

import { existsSync, readFileSync, statSync } from "node:fs";
import { replaceFile } from "../../files/replace-file.ts";
import { type Format, print, printJson } from "./output.ts";

/** One step. A step without `act` says why there is nothing to do. */
export interface Step {
  action: "write" | "replace" | "link" | "keep" | "remove" | "run" | "detach";
  target: string;
  note?: string;
  act?: () => void | Promise<void>;
}

/**
 * Prints and does one step after the other; with JSON, prints all at the end together with `more`. The first failure
 * ends it. Steps that are done stay done: the command can be run again.
 */
export async function perform(
  steps: readonly Step[],
  dry: boolean,
  format: Format,
  more: object = {},
): Promise<void> {
  if (dry && format === "text") print("Dry run, nothing is changed:");
  for (const step of steps) {
    if (format === "text") print(tell([step]));
    if (!dry) await step.act?.();
  }
  if (format === "json") printJson({ dryRun: dry, steps: steps.map(({ act: _, ...told }) => told), ...more });
}

export function tell(steps: readonly Step[]): string {
  return steps
    .map(
      ({ action, target, note }) => `${action.padEnd(8)}${target}${note === undefined ? "" : ` (${note})`}`,
    )
    .join("\n");
}

/** Writes a file atomically. Makes missing folders with `folderMode`. */
export function fileStep(path: string, text: string, mode: number, folderMode = 0o755): Step {
  const before = existsSync(path) ? readFileSync(path, "utf8") : undefined;
  if (before === text && (statSync(path).mode & 0o777) === mode)
    return { action: "keep", target: path, note: "the same" };
  return {
    action: before === undefined ? "write" : "replace",
    target: path,
    act() {
      replaceFile(path, text, { mode, folderMode, durable: true });
    },
  };
}
