/** The embedded control plane as a process: `bun control-plane.ts FILE PORT`. Serves the file and its changes until it is ended. */
import { serveFile } from "../../src/demo/control-plane.ts";

await serveFile(process.argv[2] ?? "", Number(process.argv[3]));
console.log("ready");
