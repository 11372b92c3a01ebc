/**
 * What counting and logging connections cost:
 *
 *     bun bench/counting.ts [--rounds N] [--seconds N] [--rate N]
 *
 * First the kernel's part: a program connects, accepts and closes in a tight loop on one CPU (connect-loop.c) while outbound
 * connections, accepted ones and the log are switched on and off by turns; the loop's CPU time, and the time in our programs by
 * the kernel's own account (kernel.bpf_stats_enabled, set for so long). No agent runs meanwhile. Then the agent's part: its CPU
 * time while RATE connections a second are made (continuity/ends.c), and without them.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { HOOK_ORDER, keptPin, linkPin } from "../src/datapath/generation/pins.ts";
import * as layout from "../src/datapath/tables/layout.gen.ts";
import { infoOf } from "../src/kernel/info.ts";
import { CgroupLink } from "../src/kernel/link.ts";
import { BpfMap } from "../src/kernel/maps.ts";
import { BpfProgram } from "../src/kernel/object.ts";
import { RingReader } from "../src/kernel/ring.ts";
import { Counting } from "../src/telemetry/counters/counting.ts";
import { NetworkNamespace } from "../test/lab/namespace.ts";
import { output } from "../test/lab/process.ts";
import { readKernelCounts } from "./continuity/ledger/kernel-counts.ts";
import { Talker } from "./continuity/talker.ts";
import { flagsOf } from "./lab/flags.ts";
import { BenchMesh, compileC, requireTools, runAndClean } from "./lab/machine.ts";
import { cpuTime, median, pairedDifference, printTable, progress } from "./lab/measure.ts";

const flags = flagsOf({
  rounds: { type: "string", default: "15" },
  seconds: { type: "string", default: "20" },
  rate: { type: "string", default: "5000" },
});
requireTools(["ip", "iproute2"], ["taskset", "util-linux"]);

const ADDRESS = "172.31.1.1";
const PORT = 8080;
const VIP = "10.61.0.1";
const CONNECTIONS = 2_000;
const STATS = "/proc/sys/kernel/bpf_stats_enabled";

/** What is switched on; each includes the one before. */
const STATES = ["nothing", "outbound", "and accepted", "and logged"] as const;

const namespace = await NetworkNamespace.create("count");
let mesh: BenchMesh | undefined;
const closers: (() => void)[] = [];
await runAndClean(measure, async () => {
  for (const close of closers.splice(0).reverse()) close();
  await mesh?.remove();
  await namespace.remove();
});

async function measure(): Promise<void> {
  await namespace.addLoopback(ADDRESS);
  mesh = new BenchMesh(namespace.path);
  const host = "counted.bench";
  await mesh.serve({
    services: [{ host, addresses: [VIP], port: 80, endpoints: [{ address: ADDRESS, port: PORT }] }],
  });
  await mesh.up();
  await mesh.agent.stop("SIGKILL");
  await kernelPart(mesh);
  await mesh.down();
  await agentPart(mesh);
}

async function kernelPart(own: BenchMesh): Promise<void> {
  const program = await compileC("connect-loop", own.folder);
  const bpffs = bpffsOf(own);
  const open = (name: string) => {
    const map = BpfMap.fromPin(keptPin(bpffs, name));
    closers.push(() => map.close());
    return map;
  };
  const counting = new Counting(open("traffic"), open("served_ports"));
  const ring = RingReader.open(open("traffic_log"), layout.flow_record.size);
  closers.push(
    () => counting.close(),
    () => ring.close(),
  );
  const place = { netns: namespace.path, cgroup: own.apps, timeoutMs: 60_000 };
  const loop = async () => {
    const command = ["taskset", "-c", "0", program, ADDRESS, String(PORT), "1", String(CONNECTIONS)];
    const [, time = ""] = (await output([...command, `${VIP}:80`], place)).trim().split(" ");
    while (ring.read().count > 0);
    return Number(time);
  };
  const before = readFileSync(STATS, "utf8");
  const rounds = Number(flags.rounds);
  const inAll = STATES.map((): number[] => []);
  const inPrograms = STATES.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    progress(`round ${round + 1} of ${rounds}`);
    for (let turn = 0; turn < STATES.length; turn++) {
      const state = round % 2 === 0 ? turn : STATES.length - 1 - turn;
      counting.count(state >= 1);
      counting.serve(state >= 2 ? [PORT] : []);
      counting.log(state >= 3);
      inAll[state]?.push(await loop());
      writeFileSync(STATS, "1");
      try {
        const began = runTime(bpffs);
        await loop();
        inPrograms[state]?.push((runTime(bpffs) - began) / CONNECTIONS);
      } finally {
        writeFileSync(STATS, before);
      }
    }
  }
  const [nothing = []] = inAll;
  const [none = []] = inPrograms;
  console.log(`A governed connection, both ends here, ${rounds} rounds of ${CONNECTIONS}:`);
  printTable(
    ["counted", "us", "us more", "us in our programs", "us more"],
    STATES.map((name, i) => [
      name,
      median(inAll[i] ?? []) / 1000,
      pairedDifference(inAll[i] ?? [], nothing) / 1000,
      median(inPrograms[i] ?? []) / 1000,
      pairedDifference(inPrograms[i] ?? [], none) / 1000,
    ]),
  );
}

/** Nanoseconds that the programs at all hooks ran, ever, while statistics were on. */
function runTime(bpffs: string): number {
  let sum = 0;
  for (const hook of HOOK_ORDER) {
    using link = CgroupLink.fromPin(linkPin(bpffs, hook));
    const program = BpfProgram.fromId(link.info().programId);
    // struct bpf_prog_info: run_time_ns.
    sum += Number(new BigUint64Array(infoOf(program.fd, 208, "program"), 192, 1)[0] ?? 0n);
    program.close();
  }
  return sum;
}

async function agentPart(own: BenchMesh): Promise<void> {
  const seconds = Number(flags.seconds);
  const ends = await compileC("ends", own.folder, join(import.meta.dirname, "continuity"));
  const ledger = join(own.folder, "ledger");
  const server = new Talker(
    "the server",
    [ends, "serve", `${ledger}-taken`, `0,${ADDRESS},${PORT}`],
    join(own.folder, "server.log"),
    { netns: namespace.path },
  );
  closers.push(() => void server.end());
  await server.hear();
  const rows: (string | number)[][] = [];
  for (const [name, more] of [
    ["nothing", ["--traffic=off"]],
    ["counted", [`--ports=[{"containerPort":${PORT}}]`]],
    ["counted and logged", [`--ports=[{"containerPort":${PORT}}]`, `--access-log=${own.folder}/access.log`]],
  ] as const) {
    progress(name);
    await own.up(undefined, ...more);
    const idle = await cpuShare(own.agent.pid, seconds);
    const client = new Talker(
      "the client",
      [ends, "connect", `${ledger}-made`, "1", "64", flags.rate, "0", "1000", `0,${VIP},80,2`],
      join(own.folder, "client.log"),
      { netns: namespace.path, cgroup: own.apps },
    );
    closers.push(() => void client.end());
    await client.hear();
    await client.ask("go");
    const made = redirected(bpffsOf(own));
    const busy = await cpuShare(own.agent.pid, seconds);
    const rate = (redirected(bpffsOf(own)) - made) / seconds;
    await client.end();
    rows.push([name, Math.round(rate), idle, busy, busy - idle]);
    await own.down();
  }
  console.log(`\nThe agent, ${seconds} s each, in % of one core:`);
  printTable(["", "connections/s", "idle", "under load", "more"], rows);
}

/** Connections that were led to an endpoint, ever. */
function redirected(bpffs: string): number {
  let sum = 0;
  for (const { redirected: count } of readKernelCounts(bpffs).services.values()) sum += count;
  return sum;
}

async function cpuShare(pid: number, seconds: number): Promise<number> {
  await Bun.sleep(2_000);
  const before = cpuTime(pid);
  await Bun.sleep(seconds * 1000);
  return ((cpuTime(pid) - before) / (seconds * 1000)) * 100;
}

function bpffsOf({ folders }: BenchMesh): string {
  return folders[0]?.replace("--bpffs=", "") ?? "";
}
