/** Waits until no BPF program can still read removed entries. */
import { readFileSync } from "node:fs";
import { check, ERRNO } from "./error.ts";
import { BpfMap } from "./maps.ts";
import { native } from "./native.ts";

/** The method of a wait. */
export type WaitMethod = "membarrier" | "map update";

/**
 * Waits (6 to 32 ms) for an RCU grace period: no BPF program that was running at the call runs any more, so what was
 * unpublished before it may be written again. Gives the method that was used. Throws KernelError.
 *
 * membarrier(MEMBARRIER_CMD_GLOBAL) calls synchronize_rcu() only while more than one CPU is online
 * (kernel/sched/membarrier.c), and returns at once otherwise; a preemptible kernel may then have a preempted reader.
 * CPUs come and go, so their number is read before and after: unless both say two or more, the wait is done by a map
 * update. `cpus` is how many are online.
 */
export function waitForGracePeriod(cpus: () => number = cpusOnline): WaitMethod {
  if (cpus() > 1 && membarrier() && cpus() > 1) return "membarrier";
  waitByUpdate();
  return "map update";
}

/** Gives false when the kernel has no membarrier, or refuses it (nohz_full). Throws KernelError for other faults. */
export function membarrier(): boolean {
  const result = native().kmesh_membarrier();
  if (result === -ERRNO.ENOSYS || result === -ERRNO.EINVAL) return false;
  check(result, "membarrier", "MEMBARRIER_CMD_GLOBAL");
  return true;
}

/**
 * Waits by an update of a map of maps, which ends with synchronize_rcu() (maybe_wait_bpf_programs() in
 * kernel/bpf/syscall.c). Throws KernelError.
 */
export function waitByUpdate(): void {
  const shape = { keySize: 4, valueSize: 4, maxEntries: 1 };
  using inner = BpfMap.create({ name: "kmesh_wait", type: "array", ...shape });
  using outer = BpfMap.create({ name: "kmesh_waits", type: "array-of-maps", ...shape, inner });
  outer.update(new Uint8Array(4), new Uint8Array(Uint32Array.of(inner.fd).buffer));
}

/** Number of online CPUs; 0 when the kernel does not say. */
export function cpusOnline(): number {
  try {
    return countCpus(readFileSync("/sys/devices/system/cpu/online", "utf8"));
  } catch {
    return 0;
  }
}

/** Counts the CPUs in a sysfs list, for example "0-3,8,10-11"; 0 for an empty list. */
export function countCpus(list: string): number {
  let count = 0;
  for (const part of list.trim().split(",")) {
    const [first = "", last = first] = part.split("-");
    if (first !== "") count += Number(last) - Number(first) + 1;
  }
  return count;
}
