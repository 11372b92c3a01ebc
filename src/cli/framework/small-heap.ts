import { writeFileSync } from "node:fs";
import { smallHeapEnvironment } from "../../runtime/heap.ts";
import { selfCommand } from "../../runtime/self.ts";

/**
 * Begins anew, in this very process, unless it was started with a small heap. Call it before anything else is loaded or
 * opened: that would be done twice.
 */
export function keepHeapSmall(): void {
  const env = smallHeapEnvironment(process.env);
  if (env) {
    const [path = "", ...rest] = selfCommand();
    const given = Object.entries(env).filter((each): each is [string, string] => each[1] !== undefined);
    // Not kernel/process.ts: loading libbpf for this one call takes a quarter of a start.
    process.execve?.(path, [path, ...rest, ...process.argv.slice(2)], Object.fromEntries(given));
  }
  try {
    // Started by way of /proc/self/exe it is called "exe".
    writeFileSync("/proc/self/comm", "kmesh");
  } catch {
    // Only a name.
  }
}
