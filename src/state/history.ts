/** What became of this machine's agents: starts, restarts, upgrades, rollbacks. A file in the state folder, for people. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { replaceFile } from "../files/replace-file.ts";
import { faultPoint } from "../runtime/fault.ts";

/** Entries that are kept. */
const KEPT = 200;
const VERSION = 1;

/** What went before a start. */
export type Cause = "first start" | "stopped" | "crash" | "reboot";

export interface Entry {
  /** ISO 8601 */
  at: string;
  kind: "start" | "stop" | "restart" | "upgrade" | "rollback";
  /** The version that ran before; absent for a first start. */
  from?: string;
  /** The version that was to run from then on; absent for a stop. */
  to?: string;
  result: "done" | "failed";
  pid: number;
  /** A boot of the machine: the kernel's random id of it. */
  boot: string;
  /** Of a start. */
  cause?: Cause;
  /** Of a start: the step that the agent before did not end. */
  unfinished?: string;
  /** Crashes one after the other are one entry. */
  times?: number;
  /** Of what failed. */
  reason?: string;
  gap_ms?: number;
  connections?: number;
  failed?: number;
  refused?: number;
  map_writes?: number;
  relinked?: number;
}

export function historyFile(stateDir: string): string {
  return join(stateDir, "history.json");
}

/** The entries, oldest first; [] when there is no file, or none that can be read as one. */
export function readHistory(stateDir: string): Entry[] {
  try {
    const { version, entries } = JSON.parse(readFileSync(historyFile(stateDir), "utf8"));
    return version === VERSION && Array.isArray(entries) ? entries.filter(isEntry) : [];
  } catch {
    return [];
  }
}

/** Adds an entry and drops the oldest beyond what is kept. Throws what the file system says; the file is then as before. */
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

/** Why an agent that starts now does, and which version ran before it. */
export function causeOfStart(entries: readonly Entry[], boot = bootId()): { cause: Cause; from?: string } {
  const last = entries.at(-1);
  if (!last) return { cause: "first start" };
  const from = entries.findLast(({ kind, result }) => kind !== "stop" && result === "done")?.to;
  const cause = last.kind === "stop" ? "stopped" : last.boot === boot ? "crash" : "reboot";
  return { cause, ...(from === undefined ? {} : { from }) };
}

/** The kernel's random id of this boot; "" where /proc does not tell. */
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
