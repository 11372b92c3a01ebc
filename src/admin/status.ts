/**
 * The agent's status: what the agent knows and the kernel does not, such as its stream to istiod, configuration that
 * is not enforced, and warnings. The admin socket serves it while the agent runs. A file keeps the last one for the
 * time after.
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { DualEngineStatus } from "../dual-engine/dual-engine.ts";
import { replaceFile } from "../files/replace-file.ts";
import type { HealthStatus } from "../health/watch.ts";
import type { InboundStatus } from "../inbound/inbound.ts";
import type { IdentityStatus } from "../istiod/identity/identity.ts";
import type { Registration } from "../istiod/registration.ts";
import type { StreamStatus } from "../istiod/stream/status.ts";
import type { Reflected } from "../kernel-native/reflection.ts";
import type { Note } from "../mesh/model.ts";
import type { NamesStatus } from "../names/status.ts";

export interface AgentStatus {
  version: string;
  pid: number;
  /** Path of the single executable, as it is named now; absent when it runs from source. */
  executable?: string;
  /**
   * ISO 8601, like all times here except those of the stream and the identity, which are milliseconds since the
   * epoch.
   */
  startedAt: string;
  /** When this was written; shows its age after the agent's end. */
  writtenAt: string;
  mode: string;
  node: { namespace: string; serviceAccount: string; addresses: string[] };
  shadow: boolean;
  cgroups: string[];
  units: string[];
  excludes: string[];
  netns: "own" | "all";
  /** Status of the DNS server for mesh names; absent while another agent owns the tables. */
  names?: NamesStatus;
  /** Authorization of inbound connections; absent as `names` is. */
  inbound?: InboundStatus;
  /** Whether this agent adopted the tables of an earlier one. */
  adopted: boolean;
  /** Present with a token: the certificate. Times in milliseconds since the epoch. */
  identity?: IdentityStatus;
  /** Present when this machine has a WorkloadEntry, or istiod makes one. */
  registration?: RegistrationStatus;
  /** Present when a probe is configured. Times in milliseconds since the epoch. */
  health?: HealthStatus;
  /** The tables come from the snapshot in the state folder; absent from istiod's first push on, when they follow istiod. */
  snapshot?: SnapshotStatus;
  stream: StreamStatus;
  /** In dual-engine mode: what of istiod's services, workloads and policies the agent holds. */
  workloads?: DualEngineStatus;
  tables: TablesStatus;
  mesh: MeshStatus;
}

export interface RegistrationStatus extends Registration {
  /** How peers see this machine, by istiod's endpoints; absent until the first push. */
  peers?: Reflected;
}

export interface SnapshotStatus {
  /** When the snapshot was written. */
  writtenAt: string;
  /** When it was published to the tables. */
  appliedAt: string;
  /** Map writes for it. */
  writes: number;
  milliseconds: number;
}

export interface TablesStatus {
  /** When this agent adopted the tables or built empty ones; absent before that. */
  openedAt?: string;
  /** Pushes published since the start. */
  applies: number;
  firstApplyAt?: string;
  lastApplyAt?: string;
  /** Map writes since the start, for the first push, and for the last. */
  writes: number;
  firstWrites?: number;
  lastWrites?: number;
  /** Duration of the last publication, milliseconds. */
  lastMilliseconds?: number;
  /** Why a push or the snapshot could not be published completely; the rest of the tables stays as it was. */
  lastError?: { at: string; text: string };
}

export interface MeshStatus {
  /** False until istiod's first push. Until then the content is the snapshot's or the previous agent's, or empty. */
  current: boolean;
  services: number;
  frontends: number;
  clusters: number;
  endpoints: number;
  /** Notes that concern no single service: inbound STRICT, RBAC, undecidable ports. */
  notes: Note[];
  /** Services with notes. */
  serviceNotes: { service: string; notes: Note[] }[];
}

/** Path of the status file in `runDir`, which outlives the agent. */
export function statusFile(runDir: string): string {
  return join(runDir, "status.json");
}

/** Path of the read-only socket in `runDir`, for the group that the setting admin-group names. */
export function readerSocket(runDir: string): string {
  return join(runDir, "status.sock");
}

/** Path of the admin socket in `runDir`. */
export function adminSocket(runDir: string): string {
  return join(runDir, "admin.sock");
}

/** Replaces the file by rename, so that a reader sees the old text or the new one. Throws the file system's Error. */
export function writeStatus(runDir: string, status: AgentStatus): void {
  replaceFile(statusFile(runDir), JSON.stringify(status), { mode: 0o600, folderMode: 0o700 });
}

/** The status that the last agent wrote; undefined when there is none or it can't be parsed. */
export function readStatus(runDir: string): AgentStatus | undefined {
  try {
    const status: AgentStatus = JSON.parse(readFileSync(statusFile(runDir), "utf8"));
    return typeof status.pid === "number" && typeof status.writtenAt === "string" ? status : undefined;
  } catch {
    return undefined;
  }
}
