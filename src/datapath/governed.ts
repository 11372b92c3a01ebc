/** The enrolment settings of a generation. */
import { type Exclusion, enrol, exclude, governNetns } from "./tables/enrolment.ts";
import type { Tables } from "./tables/tables.ts";

/** Which connections are governed, and whether in shadow mode. */
export interface Governed {
  /** Enrolled cgroup2 folders, with everything below them. */
  cgroups: string[];
  /** Enrolled systemd units by full name, in any cgroup. */
  units: string[];
  excludes: Exclusion[];
  netns: "own" | "all";
  /** Decide and count, change nothing. */
  shadow: boolean;
}

/**
 * Writes the settings into the tables, for new connections. Throws KernelError, and Error for a cgroup or namespace that
 * can't be governed; a part may then be written.
 */
export function govern(tables: Tables, { cgroups, units, netns, excludes, shadow }: Governed): void {
  enrol(tables, { cgroups, units });
  governNetns(tables, netns);
  exclude(tables, excludes);
  tables.settings.setFlags({ shadow });
}
