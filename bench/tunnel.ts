/**
 * An app's connections through kmesh tunnel and through Envoy to the same peer, in turns: by sidecar mTLS, and by HBONE to
 * another Envoy that terminates it.
 *
 *     bun bench/tunnel.ts [--rounds N] [--workers N|auto]
 *
 * The figure that holds on a shared machine is the CPU time of the proxy for one connection, one request, one GB; rates and
 * latencies depend on the load generator, which runs beside. Prints medians, the ratio to Envoy, and the bar for it. Both may
 * resume TLS sessions. The tunnel's heap is as small as that of `kmesh tunnel`.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import { addressOfTarget } from "../src/mesh/tunnel-address.ts";
import { smallHeapEnvironment } from "../src/runtime/heap.ts";
import type { TunnelTarget } from "../src/tunnel/outbound/target.ts";
import { readTunnels } from "../src/tunnel/process/status-file.ts";
import { dialTcp, listening, TestMesh } from "../test/lab/mesh-member.ts";
import type { ChildSettings } from "../test/tunnel/child.ts";
import { flagsOf } from "./lab/flags.ts";
import { cpuTime, median, printTable, progress } from "./lab/measure.ts";
import { clientConfig, terminatorConfig } from "./tunnel-envoy.ts";

const ROOT = join(import.meta.dir, "..");
const WARM_UP = 1_000;
const CONNECTIONS = 800;
const AT_ONCE = 16;
const REQUESTS = 10_000;
const HELD = 1_000;
/** Held connections are opened so many at a time: more overflow the peer's accept queue. */
const OPENED_AT_ONCE = 50;
/** Milliseconds until held connections are at rest. */
const REST = 2_500;
/** Small requests while a download runs, and beside downloads that nobody reads. */
const BESIDE = 300;
const BESIDE_UNREAD = 20;
const UNREAD = 3;
/** Milliseconds after which a request counts as starved. */
const STARVED = 2_000;
const BULK = 256 << 20;
const SNI = "outbound_.80_._.web.shop.svc.cluster.local";

const WAYS = ["sidecar mTLS", "HBONE"] as const;
type Way = (typeof WAYS)[number];

interface Proxy {
  name: string;
  /** Its processes. */
  pids(): number[];
  connect: Record<Way, () => Promise<Socket>>;
}

const HELD_ROW = "KB a held connection";
/** What each figure is measured for: ratios to Envoy's, or the figure itself. */
const BARS: Readonly<Record<string, string>> = {
  "new connections/s": "ratio >= 1",
  "p99 of a new connection and its answer, ms": "ratio <= 1",
  "keep-alive requests/s": "ratio >= 1",
  "MB of a stream per CPU second": "ratio >= 0.8",
  "p50 of a request beside a download, ms": "ratio <= 1",
  "% answered beside 3 unread downloads": "100",
  [HELD_ROW]: "<= 20",
  "most memory, MB": "<= 110",
};

const values = flagsOf({
  rounds: { type: "string", default: "3" },
  workers: { type: "string", default: "1" },
});
const mesh = new TestMesh();
const children: ChildProcess[] = [];
try {
  await main(Number(values.rounds));
} finally {
  for (const child of children) child.kill("SIGKILL");
  mesh.close();
}
process.exit(0);

async function main(rounds: number): Promise<void> {
  const web = await listening(createTlsServer({ ...mesh.issue("web"), requestCert: true }, serve));
  const app = await listening(createServer(serve));
  const [hboneWeb = 0, mtls = 0, hbone = 0] = await freePorts(3);
  await startEnvoy("terminator", terminatorConfig(mesh, hboneWeb, app), hboneWeb);
  const envoy = await startEnvoy("client", clientConfig(mesh, SNI, { mtls, hbone, web, hboneWeb }), mtls);
  const proxies: Proxy[] = [
    await startKmesh(web, hboneWeb, app),
    {
      name: "Envoy",
      pids: () => [envoy],
      connect: { "sidecar mTLS": () => dialTcp(mtls), HBONE: () => dialTcp(hbone) },
    },
  ];
  for (const proxy of proxies) for (const way of WAYS) await fresh(proxy.connect[way], WARM_UP);
  for (const way of WAYS) printTable(...(await compare(proxies, way, rounds)));
}

async function compare(
  proxies: readonly Proxy[],
  way: Way,
  rounds: number,
): Promise<[string[], (string | number)[][]]> {
  const rows = new Map<string, Map<string, number[]>>();
  for (let round = 1; round <= rounds; round++) {
    progress(`${way}: round ${round} of ${rounds}`);
    for (const proxy of proxies)
      for (const [name, value] of Object.entries(await measure(proxy, way))) {
        const row = rows.get(name) ?? new Map<string, number[]>();
        row.set(proxy.name, [...(row.get(proxy.name) ?? []), value]);
        rows.set(name, row);
      }
  }
  const table = [...rows].map(([name, row]) => {
    // Memory that was free already hides what later rounds need.
    const of = name === HELD_ROW ? (values: number[]) => Math.max(...values) : median;
    const [kmesh = 0, envoy = 0] = proxies.map((proxy) => of(row.get(proxy.name) ?? []));
    return [name, kmesh, envoy, kmesh / envoy, BARS[name] ?? ""];
  });
  return [[way, "kmesh", "Envoy", "ratio", "bar"], table];
}

/** What the app at the other end does: a download for a "b", else an echo. */
function serve(socket: Socket): void {
  socket.on("error", () => {});
  socket.on("data", (chunk: Buffer) => {
    if (chunk[0] === 0x62) pour(socket);
    else socket.write(chunk);
  });
}

/** New connections with one request each. Gives their times, ms. */
async function fresh(connect: () => Promise<Socket>, count: number): Promise<number[]> {
  const times: number[] = [];
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (let i = 0; i < count / AT_ONCE; i++) {
        const began = performance.now();
        const socket = await connect();
        await echo(socket);
        times.push(performance.now() - began);
        socket.destroy();
      }
    }),
  );
  return times;
}

async function measure(proxy: Proxy, way: Way): Promise<Record<string, number>> {
  const connect = proxy.connect[way];
  const timed = async <T>(act: () => Promise<T>) => {
    const before = sum(proxy.pids(), cpuTime);
    const started = performance.now();
    const result = await act();
    const cpu = (sum(proxy.pids(), cpuTime) - before) / 1000;
    return { result, cpu, seconds: (performance.now() - started) / 1000 };
  };
  const memory = () => sum(proxy.pids(), (pid) => kilobytes(pid, "VmRSS"));
  const before = memory();
  const held = await hold(connect);
  const resident = memory();
  for (const socket of held) socket.destroy();
  await new Promise((later) => setTimeout(later, REST));
  const connections = await timed(() => fresh(connect, CONNECTIONS));
  const kept = await connect();
  await echo(kept);
  const requests = await timed(async () => {
    for (let i = 0; i < REQUESTS; i++) await echo(kept);
  });
  const bulk = await connect();
  const stream = await timed(() => download(bulk));
  bulk.destroy();
  const beside = await requestsBeside(connect, kept);
  kept.destroy();
  const unread = await requestsBesideUnread(connect);
  return {
    "new connections/s": CONNECTIONS / connections.seconds,
    "p99 of a new connection and its answer, ms": quantile(connections.result, 0.99),
    "CPU us a new connection": (connections.cpu / CONNECTIONS) * 1e6,
    "keep-alive requests/s": REQUESTS / requests.seconds,
    "CPU us a request": (requests.cpu / REQUESTS) * 1e6,
    "one stream, MB/s": BULK / 1e6 / stream.seconds,
    "MB of a stream per CPU second": BULK / 1e6 / stream.cpu,
    "p50 of a request beside a download, ms": quantile(beside, 0.5),
    "p99 of a request beside a download, ms": quantile(beside, 0.99),
    "% answered beside 3 unread downloads": (100 * unread.length) / BESIDE_UNREAD,
    "p50 of those, ms": quantile(unread, 0.5),
    [HELD_ROW]: (resident - before) / HELD,
    "most memory, MB": sum(proxy.pids(), (pid) => kilobytes(pid, "VmHWM")) / 1024,
  };
}

/** Connections with one request each, at rest. */
async function hold(connect: () => Promise<Socket>): Promise<Socket[]> {
  const held: Socket[] = [];
  while (held.length < HELD) {
    const some = await Promise.all(Array.from({ length: OPENED_AT_ONCE }, connect));
    await Promise.all(some.map(echo));
    held.push(...some);
  }
  await new Promise((later) => setTimeout(later, REST));
  return held;
}

async function download(socket: Socket): Promise<void> {
  socket.write("b");
  let left = BULK;
  for await (const chunk of socket) {
    left -= (chunk as Buffer).length;
    if (left <= 0) break;
  }
}

/** Times of small requests on `kept` while downloads run on another connection, ms. */
/** Times of small requests on `kept` while downloads run on another connection, ms. */
async function requestsBeside(connect: () => Promise<Socket>, kept: Socket): Promise<number[]> {
  const times: number[] = [];
  while (times.length < BESIDE) {
    const bulk = await connect();
    let running = true;
    const over = download(bulk).finally(() => {
      running = false;
    });
    while (running && times.length < BESIDE) {
      const began = performance.now();
      await echo(kept);
      times.push(performance.now() - began);
    }
    bulk.destroy();
    await over.catch(() => {});
  }
  return times;
}

/** Times of new connections with one request each, beside downloads that nobody reads, ms. Those without an answer are left out. */
async function requestsBesideUnread(connect: () => Promise<Socket>): Promise<number[]> {
  const unread = await Promise.all(Array.from({ length: UNREAD }, connect));
  for (const socket of unread) {
    socket.on("error", () => {});
    socket.pause();
    socket.write("b");
  }
  await new Promise((later) => setTimeout(later, 300));
  const times: number[] = [];
  for (let i = 0; i < BESIDE_UNREAD; i++) {
    const began = performance.now();
    const socket = await connect();
    const starved = new Promise<boolean>((resolve) => setTimeout(resolve, STARVED, true));
    const answered = echo(socket).then(
      () => false,
      () => true,
    );
    if (!(await Promise.race([answered, starved]))) times.push(performance.now() - began);
    socket.on("error", () => {});
    socket.destroy();
  }
  for (const socket of unread) socket.destroy();
  return times;
}

function echo(socket: Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once("data", () => {
      socket.off("error", reject);
      resolve();
    });
    socket.once("error", reject);
    socket.write("a request of some length");
  });
}

function pour(socket: Socket): void {
  const block = Buffer.alloc(64 * 1024);
  let left = BULK;
  const more = () => {
    while (left > 0) {
      left -= block.length;
      if (!socket.write(block)) {
        socket.once("drain", more);
        return;
      }
    }
  };
  more();
}

async function startKmesh(web: number, hboneWeb: number, app: number): Promise<Proxy> {
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
    workers: values.workers === "auto" ? "auto" : Number(values.workers),
  };
  const env = smallHeapEnvironment(process.env) ?? process.env;
  const child = spawn(process.execPath, [join(ROOT, "test/tunnel/child.ts")], {
    env: { ...env, TUNNEL: JSON.stringify(settings) },
    stdio: "ignore",
  });
  children.push(child);
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

/** Starts an Envoy of one thread, and gives its pid once it accepts on `port`. */
async function startEnvoy(name: string, config: object, port: number): Promise<number> {
  const file = join(mesh.folder, `${name}.json`);
  writeFileSync(file, JSON.stringify(config));
  const path = execFileSync(join(ROOT, "test/envoy/fetch"), { encoding: "utf8" }).trim();
  const child = spawn(path, ["-c", file, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  children.push(child);
  await eventually(() => dialTcp(port).then((socket) => socket.destroy().destroyed));
  return child.pid ?? 0;
}

async function freePorts(count: number): Promise<number[]> {
  const probes = Array.from({ length: count }, () => createServer());
  const ports = await Promise.all(probes.map((probe) => listening(probe)));
  for (const probe of probes) {
    probe.close();
    await once(probe, "close");
  }
  return ports;
}

async function eventually<T>(look: () => T | undefined | Promise<T | undefined>): Promise<T> {
  for (let i = 0; i < 200; i++) {
    const found = await Promise.resolve(look()).catch(() => undefined);
    if (found !== undefined) return found;
    await new Promise((later) => setTimeout(later, 50));
  }
  throw new Error("a proxy did not come up");
}

function sum(pids: readonly number[], of: (pid: number) => number): number {
  return pids.reduce((all, pid) => all + of(pid), 0);
}

/** A size in the status of a process (proc(5)). */
function kilobytes(pid: number, name: "VmRSS" | "VmHWM"): number {
  const text = readFileSync(`/proc/${pid}/status`, "latin1");
  return Number(new RegExp(`${name}:\\s+(\\d+)`).exec(text)?.[1]);
}

function quantile(numbers: readonly number[], share: number): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}
