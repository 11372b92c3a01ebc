/**
 * What the agent knows and the kernel does not: its stream to istiod, what it could not take over, what it warns
 * of. It answers by the admin socket while it lives, and lies in a file for when it does not.
 */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Note } from "../mesh/model.ts";

export interface AgentStatus {
  version: string;
  pid: number;
  /** ISO 8601, as all times here. */
  startedAt: string;
  /** When this was written: its age, once the agent is dead. */
  writtenAt: string;
  istiod: string;
  plaintext: boolean;
  mode: string;
  node: { id: string; namespace: string; serviceAccount: string; addresses: string[] };
  shadow: boolean;
  cgroups: string[];
  excludes: string[];
  netns: "own" | "all";
  /** True when this agent found tables that an earlier one left, and took them over. */
  adopted: boolean;
  stream: StreamStatus;
  tables: TablesStatus;
  mesh: MeshStatus;
}

export interface StreamStatus {
  state: "connecting" | "synchronising" | "live" | "waiting";
  since: string;
  /** Streams opened since the start. */
  connects: number;
  lastError: string | undefined;
  lastPush: { version: string; at: string } | undefined;
  /** Resources that istiod sent and that were refused, the last 50 ones, newest last. */
  nacks: { type: string; resource: string; reason: string; at: string }[];
}

export interface TablesStatus {
  /** Pushes that became tables since the start. */
  applies: number;
  firstApplyAt: string | undefined;
  lastApplyAt: string | undefined;
  /** Map writes since the start, by the first push and by the last. */
  writes: number;
  firstWrites: number | undefined;
  lastWrites: number | undefined;
  /** From the push's end to live tables, the last push. */
  lastMilliseconds: number | undefined;
  /** The last push that could not be written; the tables before it stay. */
  lastError: string | undefined;
}

export interface MeshStatus {
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

/** The admin socket in `runDir`. */
export function adminSocket(runDir: string): string {
  return join(runDir, "admin.sock");
}

/** Replaces the file by rename, so that a reader sees the old text or the new one. Throws what the file system says. */
export function writeStatus(runDir: string, status: AgentStatus): void {
  const path = statusFile(runDir);
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  writeFileSync(`${path}.new`, JSON.stringify(status), { mode: 0o600 });
  renameSync(`${path}.new`, path);
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
