/**
 * An app's connections by sidecar mTLS through kmesh tunnel and through Envoy, to the same peer, in turns:
 *
 *     bun bench/tunnel.ts [--rounds N] [--workers N]
 *
 * The figure that holds on a shared machine is the CPU time of the proxy for one connection, one request, one GB; rates and
 * latencies depend on the load generator, which runs beside. Prints medians, the ratio to Envoy, and the bar for it. Envoy is
 * configured as istiod configures a sidecar's cluster: both may resume TLS sessions.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { createServer as createTlsServer } from "node:tls";
import { parseArgs } from "node:util";
import { addressOfTarget } from "../src/mesh/tunnel-address.ts";
import type { TunnelTarget } from "../src/tunnel/outbound/target.ts";
import { readTunnels } from "../src/tunnel/process/status-file.ts";
import { dialTcp, listening, TestMesh } from "../test/lab/mesh-member.ts";
import type { ChildSettings } from "../test/tunnel/child.ts";
import { median, printTable } from "./measure.ts";

const ROOT = join(import.meta.dir, "..");
const WARM_UP = 600;
const CONNECTIONS = 800;
const AT_ONCE = 16;
const REQUESTS = 10_000;
const HELD = 1_000;
/** Small requests while a download runs. */
const BESIDE = 300;
const BULK = 256 << 20;
const SNI = "outbound_.80_._.web.shop.svc.cluster.local";

interface Proxy {
  name: string;
  child: ChildProcess;
  connect(): Promise<Socket>;
}

const HELD_ROW = "KB a held connection";
/** What each figure is measured for: ratios to Envoy's, or the figure itself. */
const BARS: Readonly<Record<string, string>> = {
  "new connections/s": "ratio >= 1",
  "p99 of a new connection and its answer, ms": "ratio <= 1",
  "keep-alive requests/s": "ratio >= 1",
  "MB of a stream per CPU second": "ratio >= 0.8",
  "p50 of a request beside a download, ms": "ratio <= 1",
  [HELD_ROW]: "<= 20",
  "most memory, MB": "<= 110",
};

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "3" }, workers: { type: "string", default: "1" } },
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
  const peer = createTlsServer({ ...mesh.issue("web"), requestCert: true }, (socket) => {
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => {
      if (chunk[0] === 0x62) pour(socket);
      else socket.write(chunk);
    });
  });
  const port = await listening(peer);
  const proxies = [await startKmesh(port), await startEnvoy(port)];
  for (const proxy of proxies) await fresh(proxy, WARM_UP);
  const rows = new Map<string, Map<string, number[]>>();
  for (let round = 0; round < rounds; round++)
    for (const proxy of proxies)
      for (const [name, value] of Object.entries(await measure(proxy))) {
        const row = rows.get(name) ?? new Map<string, number[]>();
        row.set(proxy.name, [...(row.get(proxy.name) ?? []), value]);
        rows.set(name, row);
      }
  const table = [...rows].map(([name, row]) => {
    // Memory that was free already hides what later rounds need.
    const of = name === HELD_ROW ? (values: number[]) => Math.max(...values) : median;
    const [kmesh = 0, envoy = 0] = proxies.map((proxy) => of(row.get(proxy.name) ?? []));
    return [name, kmesh, envoy, kmesh / envoy, BARS[name] ?? ""];
  });
  printTable(["", "kmesh", "Envoy", "ratio", "bar"], table);
}

/** New connections with one request each. Gives their times, ms. */
async function fresh(proxy: Proxy, count: number): Promise<number[]> {
  const times: number[] = [];
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (let i = 0; i < count / AT_ONCE; i++) {
        const began = performance.now();
        const socket = await proxy.connect();
        await echo(socket);
        times.push(performance.now() - began);
        socket.destroy();
      }
    }),
  );
  return times;
}

async function measure(proxy: Proxy): Promise<Record<string, number>> {
  const pid = proxy.child.pid ?? 0;
  const cpu = async <T>(act: () => Promise<T>) => {
    const before = cpuSeconds(pid);
    const started = performance.now();
    const result = await act();
    return { result, cpu: cpuSeconds(pid) - before, seconds: (performance.now() - started) / 1000 };
  };
  const before = residentKilobytes(pid);
  const held = await Promise.all(Array.from({ length: HELD }, () => proxy.connect()));
  await Promise.all(held.map(echo));
  const resident = residentKilobytes(pid);
  for (const socket of held) socket.destroy();
  await new Promise((later) => setTimeout(later, 300));
  const connections = await cpu(() => fresh(proxy, CONNECTIONS));
  const kept = await proxy.connect();
  await echo(kept);
  const requests = await cpu(async () => {
    for (let i = 0; i < REQUESTS; i++) await echo(kept);
  });
  const bulk = await proxy.connect();
  const stream = await cpu(() => download(bulk));
  bulk.destroy();
  const beside = await requestsBeside(proxy, kept);
  kept.destroy();
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
    [HELD_ROW]: (resident - before) / HELD,
    "most memory, MB": mostKilobytes(pid) / 1024,
  };
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
async function requestsBeside(proxy: Proxy, kept: Socket): Promise<number[]> {
  const times: number[] = [];
  while (times.length < BESIDE) {
    const bulk = await proxy.connect();
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

async function startKmesh(port: number): Promise<Proxy> {
  const runDir = join(mesh.folder, "run");
  mkdirSync(runDir);
  const targets = join(runDir, "targets.json");
  const sans = [{ kind: "exact" as const, value: mesh.id("web") }];
  const target: TunnelTarget = {
    number: 2,
    peer: { address: "127.0.0.1", port },
    transport: { kind: "istio", sni: SNI, sans },
    service: "web",
    cluster: "web",
  };
  writeFileSync(targets, JSON.stringify([target]));
  const settings: ChildSettings = {
    store: mesh.store("app").folder,
    targets,
    runDir,
    listeners: { outbound: { host: "0.0.0.0", port: 0 } },
    workers: Number(values.workers),
  };
  const child = spawn(process.execPath, [join(ROOT, "test/tunnel/child.ts")], {
    env: { ...process.env, TUNNEL: JSON.stringify(settings) },
    stdio: "ignore",
  });
  children.push(child);
  const at = await eventually(() => readTunnels(runDir)[0]?.listening[0]?.port);
  return { name: "kmesh", child, connect: () => dialTcp(at, addressOfTarget(2)) };
}

async function startEnvoy(port: number): Promise<Proxy> {
  const free = createServer();
  const at = await listening(free);
  free.close();
  await once(free, "close");
  const address = (value: number) => ({ socket_address: { address: "127.0.0.1", port_value: value } });
  const typed = (name: string, value: object) => ({
    "@type": `type.googleapis.com/envoy.extensions.${name}`,
    ...value,
  });
  const { key, cert, ca } = mesh.issue("app");
  const tls = typed("transport_sockets.tls.v3.UpstreamTlsContext", {
    sni: SNI,
    common_tls_context: {
      alpn_protocols: ["istio"],
      tls_params: { tls_minimum_protocol_version: "TLSv1_2", tls_maximum_protocol_version: "TLSv1_3" },
      tls_certificates: [{ certificate_chain: { inline_string: cert }, private_key: { inline_string: key } }],
      validation_context: {
        trusted_ca: { inline_string: ca },
        match_typed_subject_alt_names: [{ san_type: "URI", matcher: { exact: mesh.id("web") } }],
      },
    },
  });
  const endpoints = [{ lb_endpoints: [{ endpoint: { address: address(port) } }] }];
  const tcp = typed("filters.network.tcp_proxy.v3.TcpProxy", { stat_prefix: "web", cluster: "web" });
  const config = {
    static_resources: {
      listeners: [
        {
          name: "in",
          address: address(at),
          filter_chains: [{ filters: [{ name: "tcp", typed_config: tcp }] }],
        },
      ],
      clusters: [
        {
          name: "web",
          type: "STATIC",
          load_assignment: { cluster_name: "web", endpoints },
          transport_socket: { name: "envoy.transport_sockets.tls", typed_config: tls },
        },
      ],
    },
  };
  const file = join(mesh.folder, "envoy.json");
  writeFileSync(file, JSON.stringify(config));
  const path = execFileSync(join(ROOT, "test/envoy/fetch"), { encoding: "utf8" }).trim();
  const child = spawn(path, ["-c", file, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"], {
    stdio: "ignore",
  });
  children.push(child);
  await eventually(() => dialTcp(at).then((socket) => socket.destroy()));
  return { name: "Envoy", child, connect: () => dialTcp(at) };
}

async function eventually<T>(look: () => T | undefined | Promise<T | undefined>): Promise<T> {
  for (let i = 0; i < 200; i++) {
    const found = await Promise.resolve(look()).catch(() => undefined);
    if (found !== undefined) return found;
    await new Promise((later) => setTimeout(later, 50));
  }
  throw new Error("a proxy did not come up");
}

/** User and system time of the process (proc(5), fields 14 and 15), in ticks of 10 ms. */
function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

function residentKilobytes(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1]);
}

function mostKilobytes(pid: number): number {
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1]);
}

function quantile(numbers: readonly number[], share: number): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}
