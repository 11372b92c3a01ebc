/** The exemption of a process from tables that another agent holds. */
import { exemptSelf } from "../tables/enrolment.ts";
import { readableMap } from "./map-owners.ts";

/** From now on connections of this process are not governed by the tables pinned below `bpffs`. Throws KernelError. */
export function exemptSelfPinned(bpffs: string): void {
  const agents = readableMap(bpffs, "agents");
  try {
    exemptSelf(agents);
  } finally {
    agents.close();
  }
}
