import { writeFileSync } from "node:fs";
import { smallHeapEnvironment } from "../../runtime/heap.ts";
import { selfCommand } from "../../runtime/self.ts";

/**
 * Executes this program again, in the same process, unless it already has a small heap. Call it before anything else is
 * loaded or opened, because that would be done twice.
 */
export function keepHeapSmall(): void {
  const env = smallHeapEnvironment(process.env);
  if (env) {
    const [path = "", ...rest] = selfCommand();
    const given = Object.entries(env).filter((each): each is [string, string] => each[1] !== undefined);
    // Not kernel/process.ts: loading libbpf for this one call takes a quarter of the start time.
    process.execve?.(path, [path, ...rest, ...process.argv.slice(2)], Object.fromEntries(given));
  }
  try {
    // A process that is started as /proc/self/exe is named "exe".
    writeFileSync("/proc/self/comm", "kmesh");
  } catch {
    // The name is cosmetic.
  }
}
