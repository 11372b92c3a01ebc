/**
 * The embedded control plane as a process: `bun control-plane.ts PORT`. Each line of standard input is a mesh as JSON;
 * it is pushed, and its version printed.
 */
import { createInterface } from "node:readline";
import { ControlPlane } from "../../src/demo/control-plane.ts";
import type { DemoMesh } from "../../src/demo/services.ts";

let plane: ControlPlane | undefined;
for await (const line of createInterface(process.stdin)) {
  const mesh: DemoMesh = JSON.parse(line);
  // The port is open only once there is something to serve.
  if (plane) plane.set(mesh);
  else plane = await ControlPlane.start(mesh, { port: Number(process.argv[2]) });
  console.log(plane.version);
}
process.exit(0);
