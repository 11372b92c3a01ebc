/**
 * Keeps the heap small, and copies fast. JavaScriptCore lets garbage grow in proportion to the machine's memory, which belongs to the
 * applications. The size that it assumes can only be set before a process starts, and so can the way that glibc copies.
 */

/**
 * JavaScriptCore reads this at start (Options.h): bytes. The heap may grow beyond it; it is then collected more
 * often.
 */
const VARIABLE = "BUN_JSC_forceRAMSize";
const BYTES = 160 * 1024 * 1024;

/** What makes copies and collections cheaper for a process that carries streams. Other runtimes and libraries ignore it. */
const FAST = {
  /**
   * Bytes that are allocated before a collection, at first. With the default of 8 MiB a download, which leaves 0.5 MiB for each
   * read, takes 14 % more CPU; more than 12 takes memory and gains nothing.
   */
  BUN_JSC_largeHeapSize: String(12 * 1024 * 1024),
  /**
   * glibc before 2.40 copies more than 2 KB by `rep movsb`, which on AMD's Zen 3 and 4 does 2 GB/s instead of 30 when the
   * target's place in its page is a few bytes after the source's (glibc bug 30994). Bun's TLS copies all that it reads so.
   * With this limit, bytes, vector registers copy everything.
   */
  GLIBC_TUNABLES: `glibc.cpu.x86_rep_movsb_threshold=${2 ** 30}`,
};

/**
 * The environment in which this program must be started again to have a small heap and fast copies. undefined when it has a
 * small heap already, or when the runtime does not support it.
 */
export function smallHeapEnvironment(
  env: Readonly<Record<string, string | undefined>>,
): Record<string, string | undefined> | undefined {
  if ("Deno" in globalThis || env[VARIABLE] !== undefined) return undefined;
  return { [VARIABLE]: String(BYTES), ...FAST, ...env };
}

/**
 * Collects all garbage now and gives free memory back to the system, which takes 0.1 s for a heap of 100 MB. Does nothing
 * where the runtime has no such call.
 */
export function collectGarbage(): void {
  if ("Bun" in globalThis) Bun.gc(true);
}
