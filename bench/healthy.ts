/**
 * Healthy traffic without a false alarm: `bun bench/healthy.ts [--minutes N] [--restart-every MINUTES]`
 *
 * Ten kinds of traffic that are easily taken for trouble, some 13 connections a second: short and long connections, a
 * service that hashes by source, one with endpoints for failover, one with a subset without weight, one with weights of
 * 99 to 1, one near its connection limit's half, large answers, a rare caller, and callers from outside. Endpoints of one
 * service move every two minutes, and the agent is killed and started again. Every ten seconds the map is asked for its
 * problems over one and over five minutes; each that is no mere information is a false alarm. At the end a fault is
 * staged, which must be named. Exits 1 when there was a false alarm, or when the fault was not named.
 */
import { join } from "node:path";
import { askAgent } from "../src/admin/client.ts";
import { adminSocket } from "../src/admin/status.ts";
import type { DemoService } from "../src/demo/services.ts";
import type { EdgesDocument, Problem } from "../src/telemetry/model.ts";
import { NetworkNamespace } from "../test/lab/namespace.ts";
import { eventually, OwnedProcess, output, sleep } from "../test/lab/process.ts";
import { flagsOf } from "./lab/flags.ts";
import { BenchMesh, requireTools, runAndClean } from "./lab/machine.ts";
import { figure, printTable, progress } from "./lab/measure.ts";

const flags = flagsOf({
  minutes: { type: "string", default: "60" },
  "restart-every": { type: "string", default: "10" },
});
requireTools(["ip", "iproute2"], ["python3", "python3"]);
const SCRIPT = join(import.meta.dirname, "healthy.py");
const minutes = Number(flags.minutes);
const restartEvery = Number(flags["restart-every"]);

const service = (number: number, name: string, more: Partial<DemoService>): DemoService => ({
  host: `${name}.shop.svc.cluster.local`,
  addresses: [`10.96.2.${number}`],
  port: 80,
  endpoints: [1, 2, 3].map((n) => ({ address: `127.2.${number}.${n}`, port: 8080 })),
  ...more,
});
const at = (number: number, n: number, more = {}) => ({
  address: `127.2.${number}.${n}`,
  port: 8080,
  ...more,
});
const SERVICES: DemoService[] = [
  service(1, "web", { balance: "round-robin" }),
  service(2, "api", { balance: "least-request" }),
  service(3, "sticky", { balance: "ring-hash" }),
  service(4, "near", {
    endpoints: [
      at(4, 1, { locality: "a/a/a" }),
      at(4, 2, { locality: "b/b/b", priority: 1 }),
      at(4, 3, { locality: "b/b/b", priority: 1 }),
    ],
  }),
  service(5, "canary", {
    endpoints: [at(5, 1, { subset: "v1" }), at(5, 2, { subset: "v2" }), at(5, 3, { subset: "v2" })],
    split: { v1: 100, v2: 0 },
  }),
  service(6, "weighted", { endpoints: [at(6, 1, { weight: 99 }), at(6, 2)] }),
  service(7, "limited", { endpoints: [at(7, 1)], maxConnections: 40 }),
  service(8, "files", {}),
  service(9, "rare", {}),
  // Nobody calls it before the end, and its second endpoint does not listen.
  service(10, "broken", { endpoints: [at(1, 1), at(10, 2)], balance: "round-robin" }),
];

const namespace = await NetworkNamespace.create("hlt");
const mesh = new BenchMesh(namespace.path);
const others: OwnedProcess[] = [];
await runAndClean(bench, async () => {
  for (const each of others) await each.stop("SIGKILL");
  await mesh.remove();
  await namespace.remove();
});

async function bench(): Promise<void> {
  const python = (mode: string, ...args: string[]) => {
    const started = new OwnedProcess({
      name: mode,
      log: join(mesh.folder, `${mode}.log`),
      command: ["/usr/bin/python3", SCRIPT, mode, ...args],
      netns: namespace.path,
      ...(mode === "serve" ? {} : { cgroup: mesh.apps }),
    });
    others.push(started);
    return started;
  };
  const ports = '--ports=[{"name": "http", "containerPort": 8090}]';
  const start = () => mesh.up("127.0.0.1:15010", ports, "--metrics=127.0.0.1:15020");
  const ask = async (window: number) =>
    (await askAgent(adminSocket(join(mesh.folder, "run")), `/edges?window=${window}`)) as
      | EdgesDocument
      | undefined;
  await mesh.serve({ services: SERVICES });
  await start();
  const servers = python("serve");
  await eventually("servers listen", () => servers.output().includes("ready"));
  const caller = python("call", String(minutes * 60));
  const alarms = new Map<string, Problem>();
  let looks = 0;
  let restarts = 0;
  let moves = 0;
  let used = 0;
  const began = performance.now();
  const minute = () => (performance.now() - began) / 60_000;
  while (minute() < minutes + 0.5) {
    await sleep(10_000);
    for (const window of [60, 300]) {
      const document = await ask(window);
      if (!document) continue;
      looks++;
      used = document.edges.filter(({ kind }) => kind === "endpoint").length;
      for (const problem of document.problems.filter(({ severity }) => severity !== "info")) {
        const key = `${problem.rule} ${problem.subject}`;
        if (!alarms.has(key))
          progress(`minute ${minute().toFixed(1)}, window ${window}: ${problem.rule}: ${problem.text}`);
        alarms.set(key, problem);
      }
    }
    if (minute() >= (moves + 1) * 2) {
      moves++;
      await mesh.change();
    }
    if (minute() >= (restarts + 1) * restartEvery) {
      restarts++;
      await mesh.agent.stop("SIGKILL");
      await start();
    }
  }
  await eventually("the caller ends", () => caller.status !== undefined, 120_000);
  const counts = JSON.parse(caller.tail(1)) as { made: number; failed: number; bytes: number };
  await output(["/usr/bin/python3", SCRIPT, "fault"], { netns: namespace.path, cgroup: mesh.apps });
  const named = (await ask(60))?.problems.find(
    ({ rule, subject }) => rule === "connect-refused" && subject.includes("127.2.10.2"),
  );
  console.log(`healthy traffic, ${figure(minutes)} minutes:`);
  printTable(
    ["connections", "failed", "MB", "endpoints", "moves", "restarts", "looks", "false alarms"],
    [[counts.made, counts.failed, counts.bytes >> 20, used, moves, restarts, looks, alarms.size].map(String)],
  );
  for (const { rule, text } of alarms.values()) console.log(`  ${rule}: ${text}`);
  console.log(`the staged fault: ${named ? named.text : "not named"}`);
  if (alarms.size > 0 || counts.failed > 0 || !named) process.exitCode = 1;
}
