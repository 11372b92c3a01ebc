/**
 * What the kernel's programs call a process: its pid in the initial pid namespace, and its start by the boot's clock.
 * /proc says the same in the initial namespaces; in others the kernel is asked (bpf/identity.bpf.c).
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

/** Whether /proc counts pids and times of this process as the kernel's programs do. */
export function inInitialNamespaces(): boolean {
  return Object.entries(INITIAL).every(([name, inode]) => {
    try {
      return statSync(`/proc/self/ns/${name}`).ino === inode;
    } catch {
      // A kernel without such namespaces (time: before 5.6), or without them in /proc.
      return true;
    }
  });
}

/**
 * The identity of this process, or of a child that the calling thread made (its pid as this process sees it). undefined when
 * it is gone. Throws KernelError when the kernel can't be asked.
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
