/**
 * Keeps the heap small. JavaScriptCore lets garbage grow in proportion to the machine's memory, which belongs to the
 * applications. The size that it assumes can only be set before a process starts.
 */

/**
 * JavaScriptCore reads this at start (Options.h): bytes. The heap may grow beyond it; it is then collected more
 * often.
 */
const VARIABLE = "BUN_JSC_forceRAMSize";
const BYTES = 160 * 1024 * 1024;

/**
 * The environment in which this program must be started again to have a small heap. undefined when it has one already, or
 * when the runtime does not support it.
 */
export function smallHeapEnvironment(
  env: Readonly<Record<string, string | undefined>>,
): Record<string, string | undefined> | undefined {
  if ("Deno" in globalThis || env[VARIABLE] !== undefined) return undefined;
  return { ...env, [VARIABLE]: String(BYTES) };
}

/**
 * Collects all garbage now and gives free memory back to the system, which takes 0.1 s for a heap of 100 MB. Does nothing
 * where the runtime has no such call.
 */
export function collectGarbage(): void {
  if ("Bun" in globalThis) Bun.gc(true);
}
