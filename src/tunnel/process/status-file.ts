/** The status of each tunnel process: RUN-DIR/tunnel/PID.json, replaced atomically, removed at its end. */
import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { replaceFile } from "../../files/replace-file.ts";
import { addRows, type CounterRows, Counters } from "../counters.ts";
import type { CredentialStatus } from "../tls/mesh-credentials.ts";

/** Times are milliseconds since the epoch. */
export interface TunnelStatus extends CounterRows {
  pid: number;
  /** The pid of the main process, of which this one is a worker. */
  main?: number;
  /** Pids of the workers that are added up in here. */
  workers?: number[];
  /** From /proc/PID/stat, so that another process with the same pid is not taken for it. */
  startTicks: string;
  version: string;
  started: number;
  written: number;
  /** Its listening addresses; empty while it drains. */
  listening: { name: string; address: string; port: number }[];
  /** Whether it drains: it accepts nothing and ends with its last connection. */
  draining: boolean;
  connections: number;
  /** Bytes that are held for readers which do not read. */
  held: number;
  certificate: CredentialStatus;
}

/** The folder of the status files. */
export function tunnelFolder(runDir: string): string {
  return join(runDir, "tunnel");
}

export class StatusFile {
  readonly #path: string;

  constructor(runDir: string, pid: number) {
    this.#path = join(tunnelFolder(runDir), `${pid}.json`);
  }

  /** Throws the file system's error. */
  write(status: TunnelStatus): void {
    replaceFile(this.#path, `${JSON.stringify(status)}\n`, { mode: 0o600, folderMode: 0o700 });
  }

  remove(): void {
    rmSync(this.#path, { force: true });
  }
}

/**
 * The status of every tunnel that lives, the accepting one first; its workers are added up in it. Files of dead processes
 * are left out, and removed by `sweep`.
 */
export function readTunnels(runDir: string): TunnelStatus[] {
  const found = files(runDir).flatMap((path) => {
    const status = read(path);
    return status && startTicks(status.pid) === status.startTicks ? [status] : [];
  });
  const mains = found.filter(({ main }) => !found.some(({ pid }) => pid === main));
  const whole = mains.map((main) =>
    addUp(
      main,
      found.filter((each) => each.main === main.pid),
    ),
  );
  return whole.sort((a, b) => Number(a.draining) - Number(b.draining) || b.started - a.started);
}

function addUp(main: TunnelStatus, workers: readonly TunnelStatus[]): TunnelStatus {
  if (workers.length === 0) return main;
  const all = [main, ...workers];
  const sum = (of: (status: TunnelStatus) => number) => all.reduce((total, each) => total + of(each), 0);
  return {
    ...main,
    workers: workers.map(({ pid }) => pid),
    connections: sum(({ connections }) => connections),
    held: sum(({ held }) => held),
    ...addRows(all),
  };
}

/** Removes files of crashed processes. */
export function sweepTunnels(runDir: string): void {
  mkdirSync(tunnelFolder(runDir), { recursive: true, mode: 0o700 });
  for (const path of files(runDir)) {
    const status = read(path);
    if (!status || startTicks(status.pid) !== status.startTicks) rmSync(path, { force: true });
  }
}

/** The start time of a process in clock ticks since boot, "" when there is none (proc(5), field 22). */
export function startTicks(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
  } catch {
    return "";
  }
}

function files(runDir: string): string[] {
  try {
    const folder = tunnelFolder(runDir);
    return readdirSync(folder)
      .filter((name) => /^\d+\.json$/.test(name))
      .map((name) => join(folder, name));
  } catch {
    return [];
  }
}

/** Undefined for what is no status. Members that its version does not know yet are empty. */
function read(path: string): TunnelStatus | undefined {
  try {
    const status = { ...new Counters().rows, ...JSON.parse(readFileSync(path, "utf8")) } as TunnelStatus;
    const { pid, startTicks, listening, draining, started, certificate, ways } = status;
    const whole =
      Number.isInteger(pid) &&
      typeof startTicks === "string" &&
      startTicks !== "" &&
      Array.isArray(listening) &&
      typeof draining === "boolean" &&
      typeof started === "number" &&
      typeof certificate === "object" &&
      certificate !== null &&
      (["outbound", "inbound", "hbone"] as const).every(
        (way) => typeof (ways[way]?.failures ?? 0) === "object",
      );
    return whole ? status : undefined;
  } catch {
    return undefined;
  }
}
