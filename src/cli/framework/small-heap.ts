import { writeFileSync } from "node:fs";
import { execSelf } from "../../kernel/process.ts";
import { smallHeapEnvironment } from "../../runtime/heap.ts";
import { selfCommand } from "../../runtime/self.ts";

/**
 * Begins anew, in this very process, unless it was started with a small heap. Call it before anything else is loaded or
 * opened: that would be done twice.
 */
export function keepHeapSmall(): void {
  const env = smallHeapEnvironment(process.env);
  if (env) execSelf([...selfCommand(), ...process.argv.slice(2)], env);
  try {
    // Started by way of /proc/self/exe it is called "exe".
    writeFileSync("/proc/self/comm", "kmesh");
  } catch {
    // Only a name.
  }
}
