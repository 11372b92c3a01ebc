/** What the agent asks of its own process. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { cString } from "../runtime/ffi.ts";
import { check } from "./error.ts";
import { native } from "./native.ts";

/** A process for ever: pids come again, but never with the same start. */
export interface TaskIdentity {
  tgid: number;
  /** Since boot, in units of 1/100 s: field 22 of /proc/PID/stat. */
  startTicks: bigint;
}

/** The identity of a process, of this one by default; undefined when it is gone. */
export function taskIdentity(pid: number | "self" = "self"): TaskIdentity | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined;
  }
  // The second field, the name in parentheses, may itself have spaces and parentheses.
  const rest = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const start = rest[19];
  if (start === undefined) return undefined;
  return { tgid: Number.parseInt(stat, 10), startTicks: BigInt(start) };
}

/** Inodes of the sockets that a process holds; none when it is gone or may not be looked into. */
export function socketInodes(pid: number): number[] {
  const folder = `/proc/${pid}/fd`;
  const inodes: number[] = [];
  for (const fd of listed(folder)) {
    const [, inode] = /^socket:\[(\d+)\]$/.exec(target(`${folder}/${fd}`)) ?? [];
    if (inode !== undefined) inodes.push(Number(inode));
  }
  return inodes;
}

function listed(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** Where a link leads; "" when it is gone: descriptors come and go. */
function target(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return "";
  }
}

/**
 * Replaces this process by a fresh start of the same executable; the pid stays. Descriptors with FD_CLOEXEC close.
 * @param argv all of it, the program's own name first
 * Throws KernelError; does not return otherwise.
 */
export function execSelf(argv: readonly string[], env: Readonly<Record<string, string | undefined>>): never {
  const variables = Object.entries(env).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  );
  const result = native().kmesh_exec(
    cString("/proc/self/exe"),
    strings(argv),
    argv.length,
    strings(variables),
    variables.length,
  );
  check(result, "execve", "/proc/self/exe");
  throw new Error("execve returned");
}

/** Has the kernel send a signal to this process when the thread that started it dies; 0 takes it back. */
export function prctlDeathSignal(signal: number): void {
  const PR_SET_PDEATHSIG = 1;
  check(native().kmesh_prctl(PR_SET_PDEATHSIG, BigInt(signal)), "prctl", "PR_SET_PDEATHSIG");
}

function strings(list: readonly string[]): Uint8Array {
  return Buffer.concat([...list.map(cString), new Uint8Array(1)]);
}
