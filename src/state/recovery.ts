/**
 * What a start does about the step that the previous agent did not finish, and about tables that failed attempts
 * left.
 */

import type { Datapath } from "../datapath/datapath.ts";
import { ABI_ID } from "../datapath/tables/layout.gen.ts";
import { reasonOf } from "../errors/reason.ts";
import type { Manifest, Named, Remarks, UnderWay } from "./manifest.ts";

/** The parts of the data path that recovery uses. */
export type Recovered = Pick<
  Datapath,
  "adopted" | "attached" | "takesOver" | "kept" | "name" | "removeKept" | "finishFlip"
>;

/**
 * Call it when the tables are open. Finishes a flip after its last hook was replaced. Removes every generation except
 * the live one, this version's own, and the kept one. Logs the unfinished step in one line. Gives the name of that
 * step; undefined when there was none.
 */
export function recover(
  manifest: Manifest,
  datapath: Recovered,
  log: Pick<Remarks, "info" | "warn">,
): UnderWay["name"] | undefined {
  const { unfinished, account } = manifest;
  if (unfinished?.name === "flip") datapath.finishFlip();
  const removed: string[] = [];
  for (const layout of datapath.kept) {
    if (layout === account.kept?.abi && !(unfinished?.name === "remove" && unfinished.from?.abi === layout))
      continue;
    try {
      datapath.removeKept(layout);
      removed.push(layout);
    } catch (error) {
      log.warn(`the tables of layout ${layout} stay: ${reasonOf(error)}`);
    }
  }
  manifest.settle(datapath.name);
  if (unfinished) log.warn(formatUnfinished(unfinished, datapath, removed));
  const rest = removed.filter(
    (layout) => layout !== (unfinished?.from?.abi ?? "") && layout !== unfinished?.to?.abi,
  );
  if (rest.length > 0) log.info(`removed the tables that failed attempts left: layout ${rest.join(", ")}`);
  return unfinished?.name;
}

/** `An agent ended in the middle of a step, begun 2026-11-23T12:00:00.000Z: ...` */
function formatUnfinished(step: UnderWay, datapath: Recovered, removed: readonly string[]): string {
  return `An agent ended in the middle of a step, begun ${step.at}: ${whatOf(step)}. ${outcomeOf(step, datapath, removed)}`;
}

/** Describes a step, for the log. */
export function whatOf({ name, from, to }: UnderWay): string {
  switch (name) {
    case "build":
      return `building ${nameOf(to)}`;
    case "fill":
      return `filling ${nameOf(to)}`;
    case "probe":
      return `trying out ${nameOf(to)}`;
    case "flip":
      return from
        ? `giving the hooks from ${nameOf(from)} to ${nameOf(to)}`
        : `attaching the hooks to ${nameOf(to)}`;
    case "remove":
      return `removing ${nameOf(from)}`;
  }
}

/** `layout 0123456789abcdef (kmesh 0.1.0)` */
export function nameOf(generation: Named | undefined): string {
  if (!generation) return "tables";
  const { abi, version } = generation;
  return `the tables of layout ${abi}${version === undefined ? "" : ` (kmesh ${version})`}`;
}

function outcomeOf({ name, from, to }: UnderWay, datapath: Recovered, removed: readonly string[]): string {
  if (name === "remove") return removed.includes(from?.abi ?? "") ? "Removed now" : "Nothing of them is left";
  const own = to?.abi === ABI_ID;
  if (own && datapath.attached) return name === "flip" ? "It is complete" : "They govern";
  if (own && datapath.takesOver) return "The ones before govern; begun again with the first push";
  if (own)
    return datapath.adopted ? "Taken up again with the first push" : "Nothing of it is left; begun again";
  if (removed.includes(to?.abi ?? "")) return "Undone: they are removed";
  return datapath.takesOver ? "These become live with the first push" : "Nothing of it is left";
}
