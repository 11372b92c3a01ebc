/** The command that starts this program again. */
import { existsSync, readlinkSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { isEmbedded } from "./assets.ts";

/** The executable and the arguments that come before the command: the single file, or a runtime and main.ts. */
export function selfCommand(): [executable: string, ...args: string[]] {
  if (isEmbedded()) return [executable()];
  const main = fileURLToPath(new URL("../main.ts", import.meta.url));
  return "Deno" in globalThis ? [process.execPath, "run", "--allow-all", main] : [process.execPath, main];
}

/** The executable's present path: it may have been renamed or replaced since the start. */
function executable(): string {
  const self = "/proc/self/exe";
  try {
    const name = readlinkSync(self).replace(/ \(deleted\)$/, "");
    return existsSync(name) ? name : self;
  } catch {
    return process.execPath;
  }
}
