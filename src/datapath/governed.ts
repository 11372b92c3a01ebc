/** Which connections a generation governs. */
import { type Exclusion, enrol, exclude, governNetns } from "./tables/enrolment.ts";
import type { Tables } from "./tables/tables.ts";

/** Who is governed, and whether in earnest. */
export interface Governed {
  /** Enrolled: these cgroup2 folders and what is below them. */
  cgroups: string[];
  /** Enrolled too: these systemd units, by their whole names, whichever cgroup they have. */
  units: string[];
  excludes: Exclusion[];
  netns: "own" | "all";
  /** Decide and count, change nothing. */
  shadow: boolean;
}

/**
 * Writes it into the tables, for new connections. Throws KernelError, and Error for a cgroup or namespace that can't be
 * governed; a part may be written then.
 */
export function govern(tables: Tables, { cgroups, units, netns, excludes, shadow }: Governed): void {
  enrol(tables, { cgroups, units });
  governNetns(tables, netns);
  exclude(tables, excludes);
  tables.settings.setFlags({ shadow });
}
