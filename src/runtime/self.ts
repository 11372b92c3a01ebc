/** How this program is started again, by itself. */
import { fileURLToPath } from "node:url";
import { isEmbedded } from "./assets.ts";

/** The executable and the arguments that come before the command: the single file, or a runtime and main.ts. */
export function selfCommand(): [executable: string, ...args: string[]] {
  if (isEmbedded()) return [process.execPath];
  const main = fileURLToPath(new URL("../main.ts", import.meta.url));
  return "Deno" in globalThis ? [process.execPath, "run", "--allow-all", main] : [process.execPath, main];
}
