/**
 * What a scrape of the agent's metrics costs: `bun bench/scrape.ts [--pairs N,N] [--scrapes N]`
 *
 * Each pair is a unit and a service with one endpoint that the unit connected to once. A scrape is GET /metrics over
 * loopback, less often than once in the second for which an answer is kept. Beside it `GET /healthz` of the same server: the
 * way there and back. CPU is the agent's, without what it uses when nobody scrapes: the last column, ms a second. The first scrape
 * makes the series' names and is apart; the pause is the longest GET /healthz meanwhile, from another process: so long nothing
 * else of the agent was done.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { NetworkNamespace } from "../test/lab/namespace.ts";
import { eventually, OwnedProcess, output, sleep } from "../test/lab/process.ts";
import { flagsOf } from "./lab/flags.ts";
import { BenchMesh, requireTools, runAndClean } from "./lab/machine.ts";
import { cpuTime, figure, median, printTable, progress } from "./lab/measure.ts";

const flags = flagsOf({
  pairs: { type: "string", default: "1000,10000" },
  scrapes: { type: "string", default: "10" },
});
requireTools(["ip", "iproute2"], ["python3", "python3"]);
/** Milliseconds that a scrape may take. */
const LIMITS: Readonly<Record<number, number>> = { 1000: 10, 10000: 60 };

/** Connects to each service once. All endpoints' addresses are local, and one listener answers for them. */
const CONNECT = `
import socket, sys
listener = socket.create_server(("0.0.0.0", 8080), backlog=16)
for i in range(int(sys.argv[1])):
    client = socket.create_connection(("10.%d.%d.%d" % (128 + (i >> 16), i >> 8 & 255, i & 255), 80 if i % 2 == 0 else 9000), 5)
    client.sendall(b"hello")
    listener.accept()[0].close()
    client.close()
`;

/** Scrapes in a row from a process of its own in the namespace; gives milliseconds of each, and bytes of the last. */
const SCRAPE = `
const times = [], ways = [];
let bytes = 0;
const timed = async (path, into) => {
  const began = performance.now();
  bytes = (await (await fetch("http://127.0.0.1:15020" + path, { proxy: "" })).arrayBuffer()).byteLength;
  into.push(performance.now() - began);
};
for (let i = 0; i < Number(process.argv[1]); i++) {
  await timed("/healthz", ways);
  await timed("/metrics", times);
  await new Promise((later) => setTimeout(later, 1100));
}
console.log(JSON.stringify({ times, ways, bytes }));
`;

/** Asks one after the other until it is killed, and says each that took longer than all before it. */
const PROBE = `
console.log("0");
for (let longest = 0; ; ) {
  const began = performance.now();
  await (await fetch("http://127.0.0.1:15020/healthz", { proxy: "" })).text();
  const took = performance.now() - began;
  if (took > longest) console.log((longest = took).toFixed(1));
  await new Promise((later) => setTimeout(later, 1));
}
`;

const namespace = await NetworkNamespace.create("scr");
let mesh: BenchMesh | undefined;
await runAndClean(bench, async () => {
  await mesh?.remove();
  await namespace.remove();
});

async function bench(): Promise<void> {
  await namespace.ip("route", "add", "local", "172.16.0.0/12", "dev", "lo");
  const rows: (string | number)[][] = [];
  for (const pairs of (flags.pairs ?? "").split(",").map(Number)) {
    mesh = new BenchMesh(namespace.path);
    await mesh.serve({ services: [], many: { count: pairs, endpoints: 1 } });
    await mesh.up("127.0.0.1:15010", "--metrics=127.0.0.1:15020");
    progress(`${pairs} pairs`);
    const script = join(mesh.folder, "connect.py");
    writeFileSync(script, CONNECT);
    await output(["python3", script, String(pairs)], {
      netns: namespace.path,
      cgroup: mesh.apps,
      timeoutMs: 120_000,
    });
    // The snapshot is written, and the first history recorded.
    await sleep(8_000);
    // What the agent does anyway meanwhile: it reads all rows for its history every ten seconds.
    const idle = cpuTime(mesh.agent.pid);
    await sleep(10_000);
    const perSecond = (cpuTime(mesh.agent.pid) - idle) / 10;
    const scrape = async (times: number) => {
      const place = { netns: namespace.path, timeoutMs: 120_000 };
      const text = await output([process.execPath, "-e", SCRAPE, String(times)], place);
      return JSON.parse(text) as { times: number[]; ways: number[]; bytes: number };
    };
    const log = join(mesh.folder, "probe");
    const probe = new OwnedProcess({
      name: "probe",
      log,
      command: [process.execPath, "-e", PROBE],
      netns: namespace.path,
    });
    const said = () => readFileSync(log, "utf8").trim().split("\n").map(Number);
    await eventually("the probe has begun", async () => said().length > 1);
    const {
      times: [first = 0],
    } = await scrape(1);
    await probe.stop("SIGKILL");
    const pause = Math.max(...said());
    const before = cpuTime(mesh.agent.pid);
    const began = performance.now();
    const { times, ways, bytes } = await scrape(Number(flags.scrapes));
    const seconds = (performance.now() - began) / 1000;
    const cpu = (cpuTime(mesh.agent.pid) - before - perSecond * seconds) / times.length;
    const limit = LIMITS[pairs] ?? "";
    rows.push([
      pairs,
      first,
      pause,
      Math.min(...times),
      median(times),
      Math.max(...times),
      limit,
      cpu,
      median(ways),
      bytes >> 10,
      perSecond,
    ]);
    await mesh.remove();
  }
  console.log("a scrape, ms:");
  printTable(
    ["pairs", "first", "pause", "best", "median", "worst", "limit", "CPU", "/healthz", "KB", "idle"],
    rows.map((row) => row.map((cell) => (typeof cell === "number" ? figure(cell) : cell))),
  );
}
