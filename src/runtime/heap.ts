/**
 * Keeps the heap small. JavaScriptCore lets garbage pile up in proportion to the machine's memory, which an agent beside
 * somebody's applications has no claim to; what it takes that memory to be can only be said before a process starts.
 */

/**
 * JavaScriptCore reads this at start (Options.h): bytes. The heap may grow beyond it; it is then collected more
 * often.
 */
const VARIABLE = "BUN_JSC_forceRAMSize";
const BYTES = 160 * 1024 * 1024;

/**
 * The environment with which this program would have a small heap, or undefined when it has (or when the runtime knows
 * no such thing): start again with it.
 */
export function smallHeapEnvironment(
  env: Readonly<Record<string, string | undefined>>,
): Record<string, string | undefined> | undefined {
  if ("Deno" in globalThis || env[VARIABLE] !== undefined) return undefined;
  return { ...env, [VARIABLE]: String(BYTES) };
}
