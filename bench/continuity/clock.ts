/** The clock that ends.c writes into its ledgers. Bun's own begin with its process. */
import { dlopen, FFIType } from "bun:ffi";

const CLOCK_MONOTONIC = 1;
const libc = dlopen("libc.so.6", {
  clock_gettime: { args: [FFIType.i32, FFIType.ptr], returns: FFIType.i32 },
});
const time = new BigInt64Array(2);

/** Nanoseconds of CLOCK_MONOTONIC. */
export function monotonic(): number {
  libc.symbols.clock_gettime(CLOCK_MONOTONIC, time);
  return Number(time[0]) * 1e9 + Number(time[1]);
}
