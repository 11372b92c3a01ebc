/** Pages of the executable that this process has touched. */
import { readFileSync, readlinkSync } from "node:fs";
import { ffi } from "./ffi.ts";

const DONTNEED = 4;

/**
 * Gives back the pages of the executable's code: a start touches most of them, and an agent that runs on needs a
 * third. The kernel's cache of the file keeps them, and what is used again is mapped again. Does nothing where the system has
 * no such list of mappings.
 */
export function releaseCode(): void {
  const mappings = executableMappings();
  if (mappings.length === 0) return;
  const { madvise } = ffi.open("libc.so.6", { madvise: ["i32", "u64", "u64", "i32"] });
  for (const { start, end } of mappings) madvise(start, end - start, DONTNEED);
}

/** The mappings of the executable's code. Its other parts hold pages that this process has changed, and would lose. */
function executableMappings(): { start: bigint; end: bigint }[] {
  try {
    const path = readlinkSync("/proc/self/exe");
    return readFileSync("/proc/self/maps", "utf8")
      .split("\n")
      .flatMap((line) => {
        const [, start, end, file] = /^(\w+)-(\w+) r-xp \w+ \S+ \d+ +(.*)$/.exec(line) ?? [];
        return start !== undefined && file === path
          ? [{ start: BigInt(`0x${start}`), end: BigInt(`0x${end}`) }]
          : [];
      });
  } catch {
    return [];
  }
}
