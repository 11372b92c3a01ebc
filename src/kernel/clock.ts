import { ffi } from "../runtime/ffi.ts";
import { check } from "./error.ts";
import { native } from "./native.ts";

/** CLOCK_MONOTONIC in nanoseconds, the clock of bpf_ktime_get_ns(). The runtime's own clocks have other origins. */
export function monotonic(): bigint {
  const now = new BigUint64Array(1);
  check(native().kmesh_monotonic(new Uint8Array(now.buffer)), "clock_gettime", "CLOCK_MONOTONIC");
  return now[0] ?? 0n;
}

/** struct timex is 208 bytes. Its first field, `modes`, is 0: read only. */
const TIMEX = 208;
/** The result of adjtimex(2) when the clock is not synchronized. */
const TIME_ERROR = 5;

/** Whether the machine's clock is synchronized; undefined when the kernel refuses to say (seccomp in a container). */
export function isClockSynchronized(): boolean | undefined {
  const libc = ffi.open("libc.so.6", { adjtimex: ["i32", "buffer"] });
  const state = libc.adjtimex(new Uint8Array(new ArrayBuffer(TIMEX)));
  return state < 0 ? undefined : state !== TIME_ERROR;
}
