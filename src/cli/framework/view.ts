/** Where state comes from: the agent when it lives, else what it left in the kernel and in its status file. */

import { askAgent } from "../../admin/client.ts";
import { type AgentStatus, adminSocket, readStatus } from "../../admin/status.ts";
import { examineConfig, type Folders } from "../../config/config.ts";
import type { Sources } from "../../config/sources.ts";
import type { Damage } from "../../datapath/inspect/damage.ts";
import type { Inspection, Summary } from "../../datapath/inspect/inspect.ts";
import type { PreexistingConnections } from "../../datapath/inspect/preexisting-connections.ts";
import { reasonOf } from "../../errors/reason.ts";
import { requireRoot } from "../../machine/unsupported.ts";
import { formatSpan } from "./output.ts";

export interface View<T> {
  /** The agent answered. */
  alive: boolean;
  value: T;
}

/** The agent's answer to `path`, or what `otherwise` finds without it. Needs root. */
export async function view<T>(
  folders: Folders,
  path: string,
  otherwise: () => T | Promise<T>,
): Promise<View<T>> {
  requireRoot("looking at a mesh");
  const answer = await askAgent(adminSocket(folders.runDir), path);
  if (answer !== undefined) return { alive: true, value: answer as T };
  return { alive: false, value: await otherwise() };
}

/** Why something that is worth knowing can't be told. */
export interface NotKnown {
  error: string;
}

/** Connections older than what governs them; undefined when nothing is pinned or this process can't see them. */
export async function olderThanAttach(bpffs: string): Promise<PreexistingConnections | NotKnown | undefined> {
  const [{ preexistingConnections }, { NothingPinned }] = await Promise.all([
    import("../../datapath/inspect/preexisting-connections.ts"),
    import("../../datapath/inspect/inspect.ts"),
  ]);
  try {
    return preexistingConnections(bpffs);
  } catch (error) {
    if (error instanceof NothingPinned) return undefined;
    return { error: reasonOf(error) };
  }
}

/** What the last agent left behind, and a sentence about it. */
export function lastWords(folders: Folders): { status: AgentStatus | undefined; sentence: string } {
  const status = readStatus(folders.runDir);
  if (!status)
    return { status, sentence: `No agent runs, and none has run with ${folders.runDir} since the boot.` };
  const age = formatSpan(Date.now() - Date.parse(status.writtenAt));
  return {
    status,
    sentence: `No agent runs. The last one (pid ${status.pid}) was heard of ${age} ago; what it knew is that old.`,
  };
}

/** What this command finds damaged, without an agent's help. */
export async function damageNow(folders: Folders, sources: Sources): Promise<Damage[]> {
  const { damageOf } = await import("../../machine/damage.ts");
  return damageOf(folders, undefined, undefined, examineConfig(sources).config);
}

/** Reads the pinned tables, the `whole` of them or their summary; undefined when nothing is pinned there. */
export async function kernelState(bpffs: string, whole: boolean): Promise<Summary | Inspection | undefined> {
  // Loaded here: libbpf is only for those who look into the kernel.
  const { inspectPinned, NothingPinned, summarizePinned } = await import("../../datapath/inspect/inspect.ts");
  try {
    return whole ? inspectPinned(bpffs) : summarizePinned(bpffs);
  } catch (error) {
    if (error instanceof NothingPinned) return undefined;
    throw error;
  }
}
