/**
 * A mesh of 10,000 services with 100,000 endpoints: how fast it is in the kernel, and what it takes.
 *
 *     bun bench/scale.ts [--services N] [--endpoints N-A-SERVICE] [--rounds N] [--mode MODE] [--changes N] [--istiod]
 *
 * Against a null client on the same control plane, which only receives and acknowledges. --istiod also runs the
 * real one (about two minutes to fill it, 3 GB of memory).
 */
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { binaries, ControlPlane } from "../test/control-plane/control-plane.ts";
import { MemoryCgroup } from "../test/lab/memory-cgroup.ts";
import { NetworkNamespace, removeCgroup } from "../test/lab/namespace.ts";
import { eventually, output, placed, sleep } from "../test/lab/process.ts";
import { flagsOf } from "./lab/flags.ts";
import { BenchMesh, requireTools, runAndClean } from "./lab/machine.ts";
import { median, printTable, progress } from "./lab/measure.ts";

const flags = flagsOf({
  services: { type: "string", default: "10000" },
  endpoints: { type: "string", default: "10" },
  rounds: { type: "string", default: "5" },
  mode: { type: "string", default: "kernel-native" },
  changes: { type: "string", default: "20" },
  istiod: { type: "boolean", default: false },
});
requireTools(["ip", "iproute2"], ["python3", "python3"]);
const services = Number(flags.services);
const endpoints = Number(flags.endpoints);
const rounds = Number(flags.rounds);
const MODE = `--mode=${flags.mode}`;

const WATCHED = { address: "10.61.0.1", port: 80 };
const TWO = ["172.31.1.1", "172.31.1.2"];
const watched = {
  host: "watched.bench",
  addresses: [WATCHED.address],
  port: WATCHED.port,
  endpoints: TWO.map((address) => ({ address, port: 8080 })),
};

interface NullResult {
  milliseconds: number;
  first: number;
  bytes: number;
  resources: number;
}

async function nullClient(istiod: string, netns: string): Promise<NullResult> {
  const script = join(import.meta.dirname, "lab/null-client.ts");
  return JSON.parse(
    await output([process.execPath, script, istiod, flags.mode], { netns, timeoutMs: 120_000 }),
  );
}

interface Memory {
  /** By MemFree, MB. */
  free: number;
  /** Charged to the cgroup of the agent that made the tables, MB; NaN where there is no memory controller. */
  charged: number;
}

/** MB that nobody uses, after everything that can be dropped was dropped. */
async function freeMemory(): Promise<number> {
  // Objects of the kernel are freed after grace periods, by workers.
  await sleep(2_500);
  writeFileSync("/proc/sys/vm/drop_caches", "3");
  await sleep(500);
  const samples: number[] = [];
  for (let i = 0; i < 9; i++) {
    const text = readFileSync("/proc/meminfo", "utf8");
    samples.push((Number(/^MemFree:\s+(\d+)/m.exec(text)?.[1]) * 1024) / 1e6);
    await sleep(50);
  }
  return median(samples);
}

interface Agent {
  /** From the first response to live tables, and from the start of the process, ms. */
  sync: number;
  start: number;
  /** MB. */
  peak: number;
  after: number;
}

/** Starts an agent on empty tables and tells what it took. It still runs afterwards. */
async function startAgent(mesh: BenchMesh, istiod: string): Promise<Agent> {
  const began = performance.timeOrigin + performance.now();
  await mesh.up(istiod, MODE);
  const status = await mesh.agentStatus();
  const live = Date.parse(status?.tables.firstApplyAt ?? "");
  const connected = status?.stream.connectedSince ?? Number.NaN;
  await sleep(12_000);
  const [now, peak] = mesh.agent.memory();
  return { sync: live - connected, start: live - began, peak: peak / 1024, after: now / 1024 };
}

/** From the change at the control plane to the first connection to the new endpoint, ms. */
async function changes(mesh: BenchMesh, netns: string, count: number): Promise<number[]> {
  const watch = join(import.meta.dirname, "lab/switch-watch.py");
  const [file = "", ...args] = placed(
    ["python3", watch, WATCHED.address, String(WATCHED.port), "8080", ...TWO],
    { netns, cgroup: mesh.apps },
  );
  const child = spawn(file, args, { stdio: ["pipe", "pipe", "inherit"] });
  const lines: string[] = [];
  let rest = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    const parts = (rest + text).split("\n");
    rest = parts.pop() ?? "";
    lines.push(...parts);
  });
  const result: number[] = [];
  try {
    // Both endpoints take turns until the first change leaves one.
    mesh.change();
    await sleep(1_500);
    for (let i = 0; i < count; i++) {
      lines.length = 0;
      const changed = mesh.change();
      const line = await eventually("the change is live", () => lines[0], 30_000, 5);
      const [, at = ""] = line.split(" ");
      result.push(Number(at) - (await changed));
      await sleep(200);
    }
  } finally {
    child.stdin.end();
    child.kill("SIGKILL");
  }
  return result;
}

async function measure(
  name: string,
  mesh: BenchMesh,
  istiod: string,
  netns: string,
): Promise<(string | number)[]> {
  const nulls: number[] = [];
  const agents: Agent[] = [];
  for (let round = 1; round <= rounds; round++) {
    progress(`${name}: round ${round} of ${rounds}`);
    const peer = await nullClient(istiod, netns);
    nulls.push(peer.milliseconds);
    if (round === 1) progress(`${peer.resources} resources, ${(peer.bytes / 1e6).toFixed(1)} MB`);
    const agent = await startAgent(mesh, istiod);
    // Both from connecting: what passes until the first response is the control plane's, as the null client saw it.
    agents.push({ ...agent, sync: agent.sync + peer.first });
    await mesh.down();
  }
  const syncs = agents.map(({ sync }) => sync);
  return [
    name,
    median(nulls),
    median(syncs),
    median(syncs.map((sync, i) => sync / (nulls[i] ?? Number.NaN))),
    median(agents.map(({ start }) => start)),
    Math.max(...agents.map(({ peak }) => peak)),
    median(agents.map(({ after }) => after)),
  ];
}

/** Kernel memory that the tables of a mesh take, after the agent was killed, MB. */
async function tableMemory(mesh: BenchMesh, many: number): Promise<Memory> {
  const samples: Memory[] = [];
  await mesh.serve({ services: [watched], many: { count: many, endpoints } });
  for (let i = 0; i < rounds; i++) {
    progress(`kernel memory of ${many} services, round ${i + 1} of ${rounds}`);
    const cgroup = MemoryCgroup.create();
    try {
      await mesh.upIn(cgroup === undefined ? {} : { cgroup: cgroup.path }, "127.0.0.1:15010", MODE);
      await sleep(500);
      await mesh.agent.stop("SIGKILL");
      const held = await freeMemory();
      cgroup?.reclaim();
      const charged = cgroup?.kernelMemory() ?? Number.NaN;
      await mesh.down();
      const after = await freeMemory();
      cgroup?.reclaim();
      samples.push({ free: after - held, charged: charged - (cgroup?.kernelMemory() ?? 0) });
    } finally {
      if (cgroup !== undefined) await removeCgroup(cgroup.path);
    }
  }
  return {
    free: median(samples.map(({ free }) => free)),
    charged: median(samples.map(({ charged }) => charged)),
  };
}

const namespace = await NetworkNamespace.create("scale");
let mesh: BenchMesh | undefined;
let real: ControlPlane | undefined;
await runAndClean(bench, async () => {
  await mesh?.remove();
  await real?.stop();
  await namespace.remove();
});

async function bench(): Promise<void> {
  await namespace.addLoopback(...TWO);
  const own = new BenchMesh(namespace.path);
  mesh = own;
  const rows: (string | number)[][] = [];
  await own.serve({ services: [watched], many: { count: services, endpoints } });
  rows.push(await measure("embedded control plane", own, "127.0.0.1:15010", namespace.path));
  progress("one endpoint changes");
  await own.up(undefined, MODE);
  const latencies = await changes(own, namespace.path, Number(flags.changes));
  const { tables } = (await own.agentStatus()) ?? {};
  progress(`the last change: ${tables?.lastWrites} map writes, ${tables?.lastMilliseconds?.toFixed(2)} ms`);
  await own.down();
  const full = await tableMemory(own, services);
  const empty = await tableMemory(own, 0);

  if (flags.istiod) {
    await own.stopServing();
    const built = binaries();
    if ("missing" in built) throw new Error(built.missing);
    progress("filling the real istiod");
    real = await ControlPlane.start({ binaries: built.folder, netns: namespace.path, namespaces: ["bench"] });
    await fill(real);
    rows.push(await measure("real istiod", own, `127.0.0.1:${real.ports.grpc}`, namespace.path));
  }

  console.log(`${services} services, ${services * endpoints} endpoints, ${rounds} rounds:`);
  printTable(
    ["", "null client, ms", "kmesh live, ms", "ratio", "from start, ms", "RSS peak, MB", "RSS after, MB"],
    rows,
  );
  console.log("\nKernel memory of the tables, MB:");
  printTable(
    ["services", "by free memory", "charged to the agent's cgroup"],
    [
      [String(services), full.free, full.charged],
      ["0", empty.free, empty.charged],
    ],
  );
  console.log("\nOne endpoint changes, from the push to the first connection to the new one, ms:");
  const sorted = [...latencies].sort((a, b) => a - b);
  printTable(
    ["", "median", "worst"],
    [[`${sorted.length} changes`, median(sorted), sorted.at(-1) ?? Number.NaN]],
  );
}

/** 100 ServiceEntries a namespace would be istiod's best case; one namespace is a VM's. Half HTTP, half TCP. */
async function fill(plane: ControlPlane): Promise<void> {
  let next = 0;
  const writer = async () => {
    for (;;) {
      const i = next++;
      if (i >= services) return;
      if (i % 1000 === 0) progress(`${i} of ${services} ServiceEntries`);
      await plane.kube.apply({
        apiVersion: "networking.istio.io/v1",
        kind: "ServiceEntry",
        metadata: { name: `svc-${i}`, namespace: "bench" },
        spec: {
          hosts: [`svc-${i}.load.internal`],
          addresses: [`10.${128 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`],
          location: "MESH_INTERNAL",
          resolution: "STATIC",
          ports: [
            i % 2 === 0
              ? { number: 80, name: "http", protocol: "HTTP" }
              : { number: 9000, name: "tcp", protocol: "TCP" },
          ],
          endpoints: Array.from({ length: endpoints }, (_, j) => {
            const n = i * endpoints + j;
            return { address: `172.${16 + ((n >> 16) & 15)}.${(n >> 8) & 255}.${n & 255}` };
          }),
        },
      });
    }
  };
  await Promise.all(Array.from({ length: 8 }, writer));
  // istiod debounces for at most ten seconds.
  await sleep(12_000);
}
