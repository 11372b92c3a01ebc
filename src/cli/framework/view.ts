/** Reads state from the agent or, without one, from the kernel and the last status file. */

import { accessSync, constants } from "node:fs";
import { askAgent } from "../../admin/client.ts";
import { type AgentStatus, adminSocket, readerSocket, readStatus } from "../../admin/status.ts";
import { examineConfig, type Folders, readFolders } from "../../config/config.ts";
import { type Flags, type Sources, sourcesOf } from "../../config/sources.ts";
import type { Damage } from "../../datapath/inspect/damage.ts";
import type { PreexistingConnections } from "../../datapath/inspect/preexisting-connections.ts";
import type { Inspection, Summary } from "../../datapath/inspect/state.ts";
import { codeOf, isMissing, reasonOf } from "../../errors/reason.ts";
import { Unsupported } from "../../machine/unsupported.ts";
import { detail, formatSpan } from "./output.ts";

export interface View<T> {
  /** The agent answered. */
  alive: boolean;
  value: T;
}

/** The folders of a command's mesh. If the user can't read the configuration, flags and variables decide. */
export function foldersOf(flags: Flags): Folders {
  const sources = sourcesOf(flags, process.env);
  if (process.geteuid?.() === 0 || sources.file.required) return readFolders(sources);
  try {
    accessSync(sources.file.path, constants.R_OK);
  } catch (error) {
    if (codeOf(error) === "EACCES") return readFolders({ ...sources, file: { ...sources.file, text: "" } });
  }
  return readFolders(sources);
}

/**
 * The agent's answer to `path`, or the result of `otherwise` without an agent, which needs root. Throws Unsupported
 * unless the user is root or a member of admin-group.
 */
export async function view<T>(
  folders: Folders,
  path: string,
  otherwise: () => T | Promise<T>,
): Promise<View<T>> {
  const root = process.geteuid?.() === 0;
  const socket = root ? adminSocket(folders.runDir) : readerSocket(folders.runDir);
  if (!root) requireReader(socket);
  const began = performance.now();
  const answer = await askAgent(socket, path);
  const took = `${(performance.now() - began).toFixed(1)} ms`;
  detail(answer === undefined ? `no agent listens at ${socket}` : `${socket} answered ${path} in ${took}`);
  if (answer !== undefined) return { alive: true, value: answer as T };
  if (!root)
    throw new Unsupported("no agent runs, and only root can look into the kernel", "Run it with sudo.");
  return { alive: false, value: await otherwise() };
}

/** Throws Unsupported unless this user may open the read-only socket. */
function requireReader(socket: string): void {
  try {
    accessSync(socket, constants.W_OK);
  } catch (error) {
    throw new Unsupported(
      isMissing(error)
        ? "looking at a mesh needs root here"
        : "looking at a mesh needs root, or the group admin-group",
      isMissing(error)
        ? "Run it as root, or with sudo. Members of a group may look where admin-group names one and an agent runs."
        : "Run it as root, or with sudo; or become a member of the group that the setting admin-group names.",
    );
  }
}

/** The reason why a part of the state can't be read. */
export interface NotKnown {
  error: string;
}

/** Connections from before the attachment; undefined when nothing is pinned or this process can't see them. */
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

/** The status of the last agent, and a sentence about it. */
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

/** Damage that this command finds without an agent. */
export async function damageNow(folders: Folders, sources: Sources): Promise<Damage[]> {
  const { damageOf } = await import("../../machine/damage.ts");
  return damageOf(folders, undefined, undefined, examineConfig(sources).config);
}

/** Reads the pinned tables, all of them (`whole`) or a summary; undefined when nothing is pinned. */
export async function kernelState(bpffs: string, whole: boolean): Promise<Summary | Inspection | undefined> {
  // Loaded here, because only this path needs libbpf.
  const { inspectPinned, NothingPinned, summarizePinned } = await import("../../datapath/inspect/inspect.ts");
  try {
    return whole ? inspectPinned(bpffs) : summarizePinned(bpffs);
  } catch (error) {
    if (error instanceof NothingPinned) return undefined;
    throw error;
  }
}
