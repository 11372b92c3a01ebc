/** Exempts a process from tables that another agent owns. */
import { exemptSelf } from "../tables/enrolment.ts";
import { readableMap } from "./map-owners.ts";

/** Exempts this process's connections from the tables pinned below `bpffs`. Throws KernelError. */
export function exemptSelfPinned(bpffs: string): void {
  const agents = readableMap(bpffs, "agents");
  try {
    exemptSelf(agents);
  } finally {
    agents.close();
  }
}
