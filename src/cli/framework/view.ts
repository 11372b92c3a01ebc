/** Reads state from the agent or, without one, from the kernel and the last status file. */

import { accessSync, constants } from "node:fs";
import { askAgent } from "../../admin/client.ts";
import { type AgentStatus, adminSocket, readerSocket, readStatus } from "../../admin/status.ts";
import { type Config, examineConfig, type Folders, readFolders } from "../../config/config.ts";
import { ConfigError } from "../../config/config-error.ts";
import { type Flags, readAsFarAsUsable, type Sources, sourcesOf } from "../../config/sources.ts";
import type { Damage } from "../../datapath/inspect/damage.ts";
import type { PreexistingConnections } from "../../datapath/inspect/preexisting-connections.ts";
import type { Inspection, Summary } from "../../datapath/inspect/state.ts";
import { isMissing, reasonOf } from "../../errors/reason.ts";
import { Unsupported } from "../../machine/unsupported.ts";
import { detail, formatSpan, remark } from "./output.ts";

export interface View<T> {
  /** The agent answered. */
  alive: boolean;
  value: T;
}

/** The folders of the mesh that a command looks at. Says on standard error when the configuration can't be used. */
export function foldersOf(flags: Flags): Folders {
  // Other users than root can't read the file, and need not.
  const say = process.geteuid?.() === 0 ? remark : () => {};
  return foldersIn(sourcesOf(flags, process.env), say);
}

/**
 * The folders. If the file in the default place can't be used, flags, variables and defaults decide, and `say` gets the
 * reason: a command that looks for a fault must not fail by it. Throws ConfigError for a wrong flag or variable, and for a
 * file that --config or KMESH_CONFIG names.
 */
export function foldersIn(sources: Sources, say: (text: string) => void): Folders {
  if (sources.file.required) return readFolders(sources);
  return readAsFarAsUsable(sources, readFolders, ({ message }) =>
    say(`kmesh: ${message}. It is ignored; these are the default folders.`),
  );
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

/** The next step where no agent runs. */
export const START_AN_AGENT = "systemctl start kmesh starts an agent; without the service, kmesh run does.";

/** The status of the last agent, and a sentence about it. */
export function lastWords(folders: Folders): { status: AgentStatus | undefined; sentence: string } {
  const status = readStatus(folders.runDir);
  if (!status)
    return { status, sentence: `No agent runs, and none has run with ${folders.runDir} since the boot.` };
  const age = formatSpan(Date.now() - Date.parse(status.writtenAt));
  return {
    status,
    sentence: `No agent runs. The last one (pid ${status.pid}) wrote its status ${age} ago; what it knew is that old.`,
  };
}

/** Damage that this command finds without an agent. */
export async function damageNow(folders: Folders, sources: Sources): Promise<Damage[]> {
  const { damageOf } = await import("../../machine/damage.ts");
  return damageOf(folders, undefined, undefined, configOf(sources));
}

/** The configuration, whatever is wrong with it; undefined when the file is none. */
function configOf(sources: Sources): Config | undefined {
  try {
    return examineConfig(sources).config;
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return undefined;
  }
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
