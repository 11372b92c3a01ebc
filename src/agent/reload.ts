/** Compares two configurations for a reload. */
import { isDeepStrictEqual } from "node:util";
import type { Config } from "../config/config.ts";
import { LIVE, SETTINGS, type SettingName } from "../config/settings.ts";
import { type SettingValues, settingValues } from "../config/values.ts";

/** The settings of LIVE, as the configuration has them. */
export type LiveSettings = Pick<
  Config,
  | "cgroups"
  | "units"
  | "excludes"
  | "netns"
  | "dns"
  | "dnsExcludes"
  | "dnsTruncate"
  | "inbound"
  | "enforceEstablished"
  | "shadow"
  | "traffic"
  | "metrics"
  | "accessLog"
>;

export interface Differences {
  /** Changed settings that a running agent applies. */
  live: SettingName[];
  /** Changed settings that wait for the next start. */
  later: SettingName[];
}

/** The names of the settings that differ, as in the file. */
export function differences(before: Config, after: Config): Differences {
  return differencesOf(settingValues(before), settingValues(after));
}

/** The same, ignoring settings that one of the two does not have. */
export function differencesOf(before: Partial<SettingValues>, after: Partial<SettingValues>): Differences {
  const result: Differences = { live: [], later: [] };
  for (const name of Object.keys(SETTINGS) as SettingName[]) {
    const [one, other] = [before[name], after[name]];
    if (one === undefined || other === undefined || isDeepStrictEqual(one, other)) continue;
    result[LIVE.includes(name) ? "live" : "later"].push(name);
  }
  return result;
}

/** One line for the log and for `systemctl status`. */
export function formatReload({ live, later }: Differences): string {
  const done =
    live.length > 0
      ? `Reloaded ${live.join(", ")}`
      : "Reloaded: nothing that can change without a restart did";
  return later.length > 0
    ? `${done}. A restart is needed for ${later.join(", ")} (connections continue meanwhile)`
    : done;
}
