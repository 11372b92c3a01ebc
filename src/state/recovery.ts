/** What a start does about the step in whose middle the agent before ended, and about what dead attempts left. */

import type { Datapath } from "../datapath/datapath.ts";
import { ABI_ID } from "../datapath/tables/layout.gen.ts";
import { reasonOf } from "../errors/reason.ts";
import type { Manifest, Named, Remarks, UnderWay } from "./manifest.ts";

/** What of the data path it takes. */
export type Recovered = Pick<
  Datapath,
  "adopted" | "attached" | "takesOver" | "kept" | "name" | "removeKept" | "finishFlip"
>;

/**
 * Call it when the tables are open. Finishes a flip behind its last hook, removes every generation but the one that
 * governs, whichever that is, this one's and the one that is kept, and says in one line what was under way. Gives that step's name.
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
  if (unfinished) log.warn(tell(unfinished, datapath, removed));
  const rest = removed.filter(
    (layout) => layout !== (unfinished?.from?.abi ?? "") && layout !== unfinished?.to?.abi,
  );
  if (rest.length > 0)
    log.info(`removed what attempts that broke off left: tables of layout ${rest.join(", ")}`);
  return unfinished?.name;
}

/** `An agent ended in the middle of a step, begun 2026-11-23T12:00:00.000Z: ...` */
function tell(step: UnderWay, datapath: Recovered, removed: readonly string[]): string {
  return `An agent ended in the middle of a step, begun ${step.at}: ${whatOf(step)}. ${outcomeOf(step, datapath, removed)}`;
}

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
    return datapath.adopted ? "Taken up again with the first push" : "Nothing of it is left; begun anew";
  if (removed.includes(to?.abi ?? "")) return "Undone: they are removed";
  return datapath.takesOver ? "These take over with the first push" : "Nothing of it is left";
}
