/**
 * A process's identity for the kernel's programs: its pid in the initial pid namespace, and its start time by the boot
 * clock. /proc has them in the initial namespaces. In other namespaces a program finds them (bpf/identity.bpf.c).
 */
import { statSync } from "node:fs";
import { fetchAtomics } from "../../kernel/features.ts";
import { BpfObject } from "../../kernel/object.ts";
import { type TaskIdentity, taskIdentity } from "../../kernel/process.ts";
import { asset } from "../../runtime/assets.ts";

/** Inodes of the initial namespaces: PROC_PID_INIT_INO and PROC_TIME_INIT_INO of the kernel's proc_ns.h. */
const INITIAL = { pid: 0xeffffffc, time: 0xeffffffa } as const;

/** enum question of bpf/identity.bpf.c. */
const QUESTION = { tgid: 0, startLow: 1, startHigh: 2 } as const;

/** Whether /proc has the same pids and times as the kernel's programs. */
export function inInitialNamespaces(): boolean {
  return Object.entries(INITIAL).every(([name, inode]) => {
    try {
      return statSync(`/proc/self/ns/${name}`).ino === inode;
    } catch {
      // A kernel without these namespaces (time: before 5.6), or without them in /proc.
      return true;
    }
  });
}

/**
 * The identity of this process, or of a child of the calling thread (by its pid in this process's namespace). undefined
 * when it is gone. Throws KernelError when the program can't run.
 */
export function kernelIdentity(pid: number | "self" = "self"): TaskIdentity | undefined {
  if (inInitialNamespaces()) return taskIdentity(pid);
  using object = BpfObject.open(
    asset(fetchAtomics() ? "identity.bpf.o" : "identity.compat.bpf.o"),
    "identity",
  );
  object.load();
  using program = object.program("identify");
  const child = pid === "self" ? 0 : pid;
  const tgid = program.ask(QUESTION.tgid, child);
  if (tgid === 0) return undefined;
  const [low, high] = [program.ask(QUESTION.startLow, child), program.ask(QUESTION.startHigh, child)];
  return { tgid, startTicks: (BigInt(high) << 32n) | BigInt(low) };
}
