import { ffi } from "../runtime/ffi.ts";
import { check } from "./error.ts";
import { native } from "./native.ts";

/** CLOCK_MONOTONIC in nanoseconds, as programs read it by bpf_ktime_get_ns; the runtime's own clocks begin elsewhere. */
export function monotonic(): bigint {
  const now = new BigUint64Array(1);
  check(native().kmesh_monotonic(new Uint8Array(now.buffer)), "clock_gettime", "CLOCK_MONOTONIC");
  return now[0] ?? 0n;
}

/** struct timex is 208 bytes; its first field says what to set: nothing. */
const TIMEX = 208;
/** What adjtimex(2) gives when no time service keeps the clock. */
const TIME_ERROR = 5;

/** Whether a time service keeps this machine's clock; undefined when the kernel does not tell us (a container's filter). */
export function isClockSynchronized(): boolean | undefined {
  const libc = ffi.open("libc.so.6", { adjtimex: ["i32", "buffer"] });
  const state = libc.adjtimex(new Uint8Array(new ArrayBuffer(TIMEX)));
  return state < 0 ? undefined : state !== TIME_ERROR;
}
