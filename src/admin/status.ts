/**
 * What the agent knows and the kernel does not: its stream to istiod, what it could not take over, what it warns
 * of. It answers by the admin socket while it lives, and lies in a file for when it does not.
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { replaceFile } from "../files/replace-file.ts";
import type { HealthStatus } from "../health/watch.ts";
import type { IdentityStatus } from "../istiod/identity/identity.ts";
import type { StreamStatus } from "../istiod/stream/status.ts";
import type { Reflected } from "../kernel-native/reflection.ts";
import type { Note } from "../mesh/model.ts";
import type { NamesStatus } from "../names/status.ts";

export interface AgentStatus {
  version: string;
  pid: number;
  /** The single file that it runs from, as it is named now; absent when it runs from source. */
  executable?: string;
  /** ISO 8601, as all times here but the stream's and the identity's, which are milliseconds since the epoch. */
  startedAt: string;
  /** When this was written: its age, once the agent is dead. */
  writtenAt: string;
  mode: string;
  node: { namespace: string; serviceAccount: string; addresses: string[] };
  shadow: boolean;
  cgroups: string[];
  units: string[];
  excludes: string[];
  netns: "own" | "all";
  /** How queries for mesh names are answered; absent while another agent has the tables. */
  names?: NamesStatus;
  /** True when this agent found tables that an earlier one left, and took them over. */
  adopted: boolean;
  /** Present where a token was given: its certificate. Times as the stream's. */
  identity?: IdentityStatus;
  /** Present where istiod has, or is to make, a WorkloadEntry of this machine. */
  registration?: RegistrationStatus;
  /** Present where a probe is configured. Times as the stream's. */
  health?: HealthStatus;
  /** The tables come from the snapshot in the state folder; absent from istiod's first push on, when they follow istiod. */
  snapshot?: SnapshotStatus;
  stream: StreamStatus;
  tables: TablesStatus;
  mesh: MeshStatus;
}

export interface RegistrationStatus {
  namespace: string;
  /** The WorkloadEntry's name. */
  entry: string;
  /** What peers reach this machine at. */
  address: string;
  /** The WorkloadGroup that istiod makes the entry of, such that peers send plaintext. */
  group?: string;
  /** What only an administrator can say where peers are told to send mTLS: the entry stood before, or is another agent's. */
  needs: string[];
  /** The same for istiod to heed the health of an entry that stood before. */
  healthNeeds?: string[];
  /** What peers are told, as istiod's endpoints have it; absent until the first push. */
  peers?: Reflected;
}

export interface SnapshotStatus {
  /** When it was written: its age. */
  writtenAt: string;
  /** When it became tables. */
  appliedAt: string;
  /** Map writes that it took. */
  writes: number;
  milliseconds: number;
}

export interface TablesStatus {
  /** When this agent took them, adopted or built empty; absent while it is only about to. */
  openedAt?: string;
  /** Pushes that became tables since the start. */
  applies: number;
  firstApplyAt?: string;
  lastApplyAt?: string;
  /** Map writes since the start, for the first push, and for the last. */
  writes: number;
  firstWrites?: number;
  lastWrites?: number;
  /** The time that the last push took to become tables. */
  lastMilliseconds?: number;
  /** Why a push, or the snapshot, could not be written to its end; what it did not reach stays as it was. */
  lastError?: { at: string; text: string };
}

export interface MeshStatus {
  /** False until istiod's first push: what stands here is then the snapshot's, or what the agent before knew, or nothing. */
  current: boolean;
  services: number;
  frontends: number;
  clusters: number;
  endpoints: number;
  /** What concerns no single service: inbound STRICT, RBAC, undecidable ports. */
  notes: Note[];
  /** Only services that have some. */
  serviceNotes: { service: string; notes: Note[] }[];
}

/** The file in `runDir` that outlives the agent. */
export function statusFile(runDir: string): string {
  return join(runDir, "status.json");
}

/** The socket in `runDir` that reads only, for the group that the setting admin-group names. */
export function readerSocket(runDir: string): string {
  return join(runDir, "status.sock");
}

/** The admin socket in `runDir`. */
export function adminSocket(runDir: string): string {
  return join(runDir, "admin.sock");
}

/** Replaces the file by rename, so that a reader sees the old text or the new one. Throws what the file system says. */
export function writeStatus(runDir: string, status: AgentStatus): void {
  replaceFile(statusFile(runDir), JSON.stringify(status), { mode: 0o600, folderMode: 0o700 });
}

/** What the last agent left; undefined when there is none, or when it can't be read as such. */
export function readStatus(runDir: string): AgentStatus | undefined {
  try {
    const status: AgentStatus = JSON.parse(readFileSync(statusFile(runDir), "utf8"));
    return typeof status.pid === "number" && typeof status.writtenAt === "string" ? status : undefined;
  } catch {
    return undefined;
  }
}
