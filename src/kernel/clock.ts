import { check } from "./error.ts";
import { native } from "./native.ts";

/** CLOCK_MONOTONIC in nanoseconds, as programs read it by bpf_ktime_get_ns; the runtime's own clocks begin elsewhere. */
export function monotonic(): bigint {
  const now = new BigUint64Array(1);
  check(native().kmesh_monotonic(new Uint8Array(now.buffer)), "clock_gettime", "CLOCK_MONOTONIC");
  return now[0] ?? 0n;
}
