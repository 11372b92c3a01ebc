/**
 * The history of this machine's agents: starts, restarts, upgrades, rollbacks. A file in the state folder, for
 * people.
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { replaceFile } from "../files/replace-file.ts";
import { faultPoint } from "../runtime/fault.ts";

/** Most entries in the file. */
const KEPT = 200;
const VERSION = 1;

/** How the run before a start ended. */
export type Cause = "first start" | "stopped" | "crash" | "reboot";

export interface Entry {
  /** ISO 8601 */
  at: string;
  kind: "start" | "stop" | "restart" | "upgrade" | "rollback";
  /** The version that ran before; absent for a first start. */
  from?: string;
  /** The version that was to run afterwards; absent for a stop. */
  to?: string;
  result: "done" | "failed";
  pid: number;
  /** The kernel's random id of the boot. */
  boot: string;
  /** For a start: how the run before it ended. */
  cause?: Cause;
  /** For a start: the step that the previous agent did not finish. */
  unfinished?: string;
  /** Number of consecutive crashes of one version, which share an entry. */
  times?: number;
  /** Why it failed. */
  reason?: string;
  gap_ms?: number;
  connections?: number;
  failed?: number;
  refused?: number;
  map_writes?: number;
  relinked?: number;
}

/** Path of the history in the state folder. */
export function historyFile(stateDir: string): string {
  return join(stateDir, "history.json");
}

/** The entries, oldest first; [] when the file is missing or can't be parsed. */
export function readHistory(stateDir: string): Entry[] {
  try {
    const { version, entries } = JSON.parse(readFileSync(historyFile(stateDir), "utf8"));
    return version === VERSION && Array.isArray(entries) ? entries.filter(isEntry) : [];
  } catch {
    return [];
  }
}

/** Adds an entry and drops the oldest ones beyond 200. Throws the file system's Error; the file is then unchanged. */
export function remember(stateDir: string, entry: Omit<Entry, "at" | "boot">): void {
  const entries = readHistory(stateDir);
  const last = entries.at(-1);
  const again = entry.cause === "crash" && last?.cause === "crash" && last.to === entry.to;
  if (again) entries.pop();
  const times = again ? { times: (last.times ?? 1) + 1 } : {};
  entries.push({ at: new Date().toISOString(), boot: bootId(), ...entry, ...times });
  const path = historyFile(stateDir);
  const text = JSON.stringify({ version: VERSION, entries: entries.slice(-KEPT) });
  replaceFile(path, text, { mode: 0o600, onWritten: () => faultPoint("history.rename") });
}

/** How the run before this start ended, and the version that ran then. `boot` is the kernel's boot id. */
export function causeOfStart(entries: readonly Entry[], boot = bootId()): { cause: Cause; from?: string } {
  const last = entries.at(-1);
  if (!last) return { cause: "first start" };
  const from = entries.findLast(({ kind, result }) => kind !== "stop" && result === "done")?.to;
  const cause = last.kind === "stop" ? "stopped" : last.boot === boot ? "crash" : "reboot";
  return { cause, ...(from === undefined ? {} : { from }) };
}

/** The kernel's random id of this boot; "" when /proc does not provide it. */
export function bootId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return "";
  }
}

function isEntry(value: unknown): value is Entry {
  return typeof value === "object" && value !== null && "at" in value && "kind" in value && "result" in value;
}
