import { check } from "./error.ts";
import { native } from "./native.ts";

/**
 * Waits (6 to 32 ms) until every CPU has been through a grace period: no BPF program still reads what was unpublished
 * before the call, so its memory may be written again.
 * Throws KernelError: ENOSYS on kernels built without it, EINVAL with nohz_full CPUs.
 */
export function membarrier(): void {
  check(native().kmesh_membarrier(), "membarrier", "MEMBARRIER_CMD_GLOBAL");
}
