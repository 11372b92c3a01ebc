/**
 * For tests: `kmesh tunnel` with targets from a file in place of pinned tables, and with every workload of the mesh let
 * in. TUNNEL holds the settings as JSON.
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { CertificateStore } from "../../src/istiod/identity/certificate-store.ts";
import type { TunnelTarget } from "../../src/tunnel/outbound/target.ts";
import { runTunnel } from "../../src/tunnel/process/run.ts";

export interface ChildSettings {
  store: string;
  targets: string;
  runDir: string;
  drainTimeout?: number;
  workers?: number | "auto";
  listeners: Record<string, { host: string; port: number }>;
}

const settings = JSON.parse(process.env.TUNNEL ?? "") as ChildSettings;
if (existsSync(join(settings.runDir, "broken"))) process.exit(1);
const line = (text: string) => void process.stderr.write(`${text}\n`);
let stamp = "";
let targets: TunnelTarget[] = [];
function readTarget(number: number): TunnelTarget | undefined {
  const { mtimeMs, size } = statSync(settings.targets);
  if (stamp !== `${mtimeMs} ${size}`) {
    targets = JSON.parse(readFileSync(settings.targets, "utf8")) as TunnelTarget[];
    stamp = `${mtimeMs} ${size}`;
  }
  return targets.find((target) => target.number === number);
}
await runTunnel({
  command: [process.execPath, import.meta.path],
  drainTimeout: settings.drainTimeout,
  ...(settings.workers !== undefined && { workers: settings.workers }),
  env: process.env,
  store: new CertificateStore(settings.store),
  readTarget,
  admission: { decide: () => ({ allowed: true, reason: "test" }), mtls: () => "permissive" },
  runDir: settings.runDir,
  version: "test",
  listeners: settings.listeners,
  log: { info: line, warn: line },
});
