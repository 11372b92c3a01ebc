import { check, ERRNO } from "./error.ts";
import { BpfMap } from "./maps.ts";
import { native } from "./native.ts";

/**
 * Waits (6 to 32 ms) until every CPU has been through a grace period: no BPF program still reads what was unpublished
 * before the call, so its memory may be written again.
 * Throws KernelError.
 */
export function membarrier(): void {
  const result = native().kmesh_membarrier();
  // Built without it, or booted with nohz_full, where it is refused.
  if (result === -ERRNO.ENOSYS || result === -ERRNO.EINVAL) waitByUpdate();
  else check(result, "membarrier", "MEMBARRIER_CMD_GLOBAL");
}

/** The same by other means: the update of a map of maps returns when no program can hold the map before. */
export function waitByUpdate(): void {
  const shape = { keySize: 4, valueSize: 4, maxEntries: 1 };
  using inner = BpfMap.create({ name: "kmesh_wait", type: "array", ...shape });
  using outer = BpfMap.create({ name: "kmesh_waits", type: "array-of-maps", ...shape, inner });
  outer.update(new Uint8Array(4), new Uint8Array(Uint32Array.of(inner.fd).buffer));
}
