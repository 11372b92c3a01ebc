/** kmesh as a contender of bench/tunnel.ts: `kmesh tunnel` with targets from a file. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { addressOfTarget } from "../../src/mesh/tunnel-address.ts";
import { smallHeapEnvironment } from "../../src/runtime/heap.ts";
import type { TunnelTarget } from "../../src/tunnel/outbound/target.ts";
import { readTunnels } from "../../src/tunnel/process/status-file.ts";
import { dialTcp } from "../../test/lab/mesh-member.ts";
import type { ChildSettings } from "../../test/tunnel/child.ts";
import { type Bench, type Contender, eventually, SNI } from "./contender.ts";

/** `kmesh tunnel` with so many workers. */
export async function startKmesh(bench: Bench, workers: number | "auto"): Promise<Contender> {
  const { mesh, web, hboneWeb, app } = bench;
  const runDir = join(mesh.folder, "run");
  mkdirSync(runDir);
  const targets = join(runDir, "targets.json");
  const sans = [{ kind: "exact" as const, value: mesh.id("web") }];
  const target = { service: "web", cluster: "web" };
  const all: TunnelTarget[] = [
    {
      ...target,
      number: 2,
      peer: { address: "127.0.0.1", port: web },
      transport: { kind: "istio", sni: SNI, sans },
    },
    {
      ...target,
      number: 3,
      peer: { address: "127.0.0.1", port: app },
      transport: { kind: "hbone", authority: "", port: hboneWeb, sans },
    },
  ];
  writeFileSync(targets, JSON.stringify(all));
  const settings: ChildSettings = {
    store: mesh.store("app").folder,
    targets,
    runDir,
    listeners: { outbound: { host: "0.0.0.0", port: 0 } },
    workers,
  };
  const env = smallHeapEnvironment(process.env) ?? process.env;
  const child = join(import.meta.dirname, "../../test/tunnel/child.ts");
  bench.begin([process.execPath, child], {
    env: { ...env, TUNNEL: JSON.stringify(settings) },
    quiet: true,
  });
  const at = await eventually(() => readTunnels(runDir)[0]?.listening[0]?.port);
  return {
    name: "kmesh",
    pids: () => readTunnels(runDir).flatMap(({ pid, workers }) => [pid, ...(workers ?? [])]),
    connect: {
      "sidecar mTLS": () => dialTcp(at, addressOfTarget(2)),
      HBONE: () => dialTcp(at, addressOfTarget(3)),
    },
  };
}
