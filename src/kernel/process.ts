/** Process identity, start and signals. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { cString } from "../runtime/ffi.ts";
import { check } from "./error.ts";
import { native } from "./native.ts";

/** Identifies a process for the whole boot: a pid is reused, but never with the same start time. */
export interface TaskIdentity {
  tgid: number;
  /** Since boot, in units of 1/100 s: field 22 of /proc/PID/stat. */
  startTicks: bigint;
}

/** The identity of a process, by default this one; undefined when it has ended. */
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

/** Inodes of a process's sockets; none when it has ended or may not be inspected. */
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

/** The target of a link; "" when it is gone, since descriptors come and go. */
function target(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return "";
  }
}

export type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Replaces this process by a fresh start of `path`, its own executable by default; the pid stays. Descriptors with
 * FD_CLOEXEC close.
 * @param argv all of it, the program's own name first
 * Throws KernelError; does not return otherwise.
 */
export function execSelf(argv: readonly string[], env: Environment, path = "/proc/self/exe"): never {
  const { variables, count } = environment(env);
  const result = native().kmesh_exec(cString(path), strings(argv), argv.length, variables, count);
  check(result, "execve", path);
  throw new Error("execve returned");
}

/**
 * Starts `path` as nobody's child: whoever takes in orphans (the service manager) is its parent at once, and hears of its
 * end. It has this process's standard input, output and error, cgroup and namespaces, and no other descriptor.
 * @param argv all of it, the program's own name first
 * Gives its identity. Throws KernelError, also when the file can't be executed.
 */
export function spawnOrphan(path: string, argv: readonly string[], env: Environment): TaskIdentity {
  const { variables, count } = environment(env);
  const pid = native().kmesh_spawn_orphan(cString(path), strings(argv), argv.length, variables, count);
  check(pid, "execve", path);
  return taskIdentity(pid) ?? { tgid: pid, startTicks: 0n };
}

/** Whether exactly this process runs: it has not ended, is no zombie, and its pid is not another's. */
export function isLiving({ tgid, startTicks }: TaskIdentity): boolean {
  try {
    const stat = readFileSync(`/proc/${tgid}/stat`, "utf8");
    const [state, ...rest] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return state !== "Z" && state !== "X" && BigInt(rest[18] ?? -1) === startTicks;
  } catch {
    return false;
  }
}

/** Sends a signal to exactly this process; does nothing when it has ended. */
export function signalTask(task: TaskIdentity, signal: NodeJS.Signals): void {
  if (!isLiving(task)) return;
  try {
    process.kill(task.tgid, signal);
  } catch {
    // It ended in between.
  }
}

/** Makes the kernel send a signal to this process when the thread that started it dies; 0 cancels it. */
export function prctlDeathSignal(signal: number): void {
  const PR_SET_PDEATHSIG = 1;
  check(native().kmesh_prctl(PR_SET_PDEATHSIG, BigInt(signal)), "prctl", "PR_SET_PDEATHSIG");
}

function environment(env: Environment): { variables: Uint8Array; count: number } {
  const list = Object.entries(env).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  );
  return { variables: strings(list), count: list.length };
}

function strings(list: readonly string[]): Uint8Array {
  return Buffer.concat([...list.map(cString), new Uint8Array(1)]);
}
