/** The manifest for `kmesh status`: the live version, the kept version, and an unfinished step. */

import { reasonOf } from "../../errors/reason.ts";
import { machineId } from "../../machine/machine-id.ts";
import { type ManifestContent, readManifest } from "../../state/manifest.ts";
import { nameOf, whatOf } from "../../state/recovery.ts";
import { KEEP } from "../../state/retention.ts";
import { formatSpan } from "./output.ts";
import type { NotKnown } from "./view.ts";

/** Reads the manifest without an agent; undefined when there is none. An unreadable one gives its fault. */
export function readStanding(stateDir: string): ManifestContent | NotKnown | undefined {
  try {
    return readManifest(stateDir, machineId());
  } catch (error) {
    return { error: `${reasonOf(error)}` };
  }
}

/** Rows for `kmesh status`; `alive`: an agent runs. */
export function formatStanding(
  standing: ManifestContent | NotKnown | undefined,
  alive: boolean,
  now: number,
): [string, string][] {
  if (!standing) return [];
  if ("error" in standing) return [["manifest", `not used: ${standing.error}`]];
  const { live, kept, step } = standing;
  const rows: string[] = [];
  if (live) rows.push(`${nameOf(live)} govern for ${formatSpan(now - Date.parse(live.since))}`);
  if (kept) {
    const left = Date.parse(kept.since) + KEEP - now;
    const until = left > 0 ? `for ${formatSpan(left)} more` : "until an agent removes them";
    rows.push(`${nameOf(kept)} are kept for the way back, ${until}`);
  }
  if (step) {
    const age = formatSpan(now - Date.parse(step.at));
    rows.push(
      alive
        ? `under way for ${age}: ${whatOf(step)}`
        : `BROKEN OFF, begun ${age} ago: ${whatOf(step)}; the next start takes care of it`,
    );
  }
  return rows.map((text, i) => [i === 0 ? "version" : "", text]);
}
