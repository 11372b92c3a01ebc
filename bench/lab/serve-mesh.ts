/**
 * The embedded control plane for a benchmark: `bun bench/lab/serve-mesh.ts MESH.json PORT`; prints "ready".
 *
 * SIGUSR2 moves the first service's endpoints round by one and prints "sent MILLISECONDS-SINCE-THE-EPOCH".
 */
import { readFileSync } from "node:fs";
import { ControlPlane } from "../../src/demo/control-plane.ts";
import { type DemoService, manyServices } from "../../src/demo/services.ts";
import { printUsageOnHelp } from "./flags.ts";
import type { MeshSpec } from "./machine.ts";

printUsageOnHelp();
const [file = "", port = ""] = process.argv.slice(2);
const spec: MeshSpec = JSON.parse(readFileSync(file, "utf8"));
const many = spec.many === undefined ? [] : manyServices(spec.many.count, spec.many.endpoints).services;
let services: DemoService[] = [...spec.services, ...many];
const plane = await ControlPlane.start({ services }, { port: Number(port) });
const all = services[0]?.endpoints ?? [];
let turn = 0;
// A change shows one endpoint at a time, so that a client sees at its next connection that it is live.
process.on("SIGUSR2", () => {
  const [first, ...rest] = services;
  const endpoint = all[++turn % all.length];
  if (first === undefined || endpoint === undefined) return;
  services = [{ ...first, endpoints: [endpoint] }, ...rest];
  // Encoding ten thousand services is the control plane's own time.
  plane.set({ services });
  const at = performance.timeOrigin + performance.now();
  console.log(`sent ${at.toFixed(3)}`);
});
console.log("ready");
