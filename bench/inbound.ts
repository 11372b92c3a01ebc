/**
 * What inbound policies cost a connection to this machine: accept rate without the program, and with 0, 10 and 1,000 policies
 * that its peer passes, in one run, interleaved. In network namespaces of its own, as root: `bun bench/inbound.ts`.
 */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InboundKeeper } from "../src/inbound/inbound.ts";
import { linkPin } from "../src/inbound/pins.ts";
import { ensureBpffs, unpin } from "../src/kernel/bpffs.ts";
import { NetnsLink } from "../src/kernel/net/netns-link.ts";
import { loopbackUp, unshareNetns } from "../src/kernel/netns.ts";
import { BpfProgram } from "../src/kernel/object.ts";
import type { Inbound, Policy } from "../src/mesh/inbound.ts";

const SIZES = [0, 10, 1_000] as const;
/** Connections of one measurement, and rounds of everything. What counts is the median of the rounds' ratios. */
const CONNECTIONS = 500;
const ROUNDS = 41;
const PORT = 8080;

const SERVER = `
import socket
one = socket.socket(); one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind(("0.0.0.0", ${PORT})); one.listen(1024); print("ready", flush=True)
while True: one.accept()[0].close()
`;
const CLIENT = `
import socket, struct, sys, time
count, begun, failed = int(sys.argv[1]), time.perf_counter(), 0
for _ in range(count):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try: one.connect(("10.78.0.1", ${PORT}))
    except OSError: failed += 1
    one.close()
print((time.perf_counter() - begun) / count * 1e6, failed)
`;

unshareNetns();
loopbackUp();
const folder = mkdtempSync(join(tmpdir(), "kmesh-bench-inbound-"));
const bpffs = `/sys/fs/bpf/kmesh_bench_${process.pid}`;
const peer = `kmb${process.pid}`;
ensureBpffs(bpffs);
let keeper: InboundKeeper | undefined;
const server = spawn("python3", ["-c", SERVER], { stdio: ["ignore", "pipe", "inherit"] });
try {
  await once(server.stdout, "data");
  shell(`ip netns add ${peer}`);
  shell(`ip link add kmb0 type veth peer name kmb1 netns ${peer}`);
  shell("ip addr add 10.78.0.1/24 dev kmb0 && ip link set kmb0 up");
  shell(`ip -n ${peer} addr add 10.78.0.2/24 dev kmb1 && ip -n ${peer} link set kmb1 up`);
  writeFileSync(join(folder, "client.py"), CLIENT);
  const costs = new Map<string, number[]>();
  const ratios = new Map<string, number[]>();
  connectionsOf(1000);
  for (let round = 0; round < ROUNDS; round++) {
    const now = new Map<string, number>();
    // Each goes first in turn.
    const order = ["none", ...SIZES] as const;
    for (let i = 0; i < order.length; i++) {
      const size = order[(round + i) % order.length] ?? "none";
      if (size === "none") detach();
      else attach(size);
      now.set(String(size), connectionsOf(CONNECTIONS));
    }
    const base = now.get("none") ?? Number.NaN;
    for (const [name, cost] of now) {
      costs.set(name, [...(costs.get(name) ?? []), cost]);
      ratios.set(name, [...(ratios.get(name) ?? []), base / cost]);
    }
  }
  for (const [name, list] of costs) {
    const what = name === "none" ? "no program" : `${name} policies`;
    const ratio = median(ratios.get(name) ?? []).toFixed(3);
    console.log(
      `${what.padEnd(14)} ${median(list).toFixed(2)} us a connection (best ${Math.min(...list).toFixed(2)}), accept rate ${ratio} of no program`,
    );
  }
  for (const size of SIZES) {
    attach(size);
    console.log(`${size} policies: the program takes ${programTime().toFixed(0)} ns a run`);
  }
} finally {
  detach();
  server.kill("SIGKILL");
  spawnSync("ip", ["netns", "delete", peer]);
  unpin(bpffs);
  rmSync(folder, { recursive: true, force: true });
}
process.exit(0);

function attach(size: number): void {
  keeper?.close();
  keeper = new InboundKeeper({ bpffs, enforce: true, log: console.error, ownsPins: () => true });
  keeper.publish(policiesOf(size));
  const { attached, trouble } = keeper.status();
  if (!attached) throw new Error(trouble ?? "not attached");
}

function detach(): void {
  keeper?.close();
  keeper = undefined;
  unpin(linkPin(bpffs));
}

/** Nanoseconds a run of the program, over some connections, by the kernel's own statistics. */
function programTime(): number {
  const setting = "/proc/sys/kernel/bpf_stats_enabled";
  const before = readFileSync(setting, "utf8");
  using link = NetnsLink.fromPin(linkPin(bpffs));
  using program = BpfProgram.fromId(link.info().programId);
  const stats = () => {
    const text = readFileSync(`/proc/self/fdinfo/${program.fd}`, "utf8");
    const number = (name: string) =>
      Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(text)?.[1] ?? Number.NaN);
    return { time: number("run_time_ns"), count: number("run_cnt") };
  };
  writeFileSync(setting, "1");
  try {
    const from = stats();
    connectionsOf(4 * CONNECTIONS);
    const to = stats();
    return (to.time - from.time) / (to.count - from.count);
  } finally {
    writeFileSync(setting, before);
  }
}

/** DENY policies of blocks that the client is not in. */
function policiesOf(size: number): Inbound {
  const policies = Array.from(
    { length: size },
    (_, i): Policy => ({
      name: `bench/deny-${i}`,
      action: "deny",
      rules: [
        { name: "rule 1", when: { kind: "source", prefixes: [`10.${100 + (i >> 8)}.${i & 255}.0/24`] } },
      ],
    }),
  );
  return { ports: [PORT], mtls: { default: "disable", ports: [] }, policies };
}

/** Microseconds a connection, from the peer's namespace. Throws when one is refused. */
function connectionsOf(count: number): number {
  const { stdout } = spawnSync(
    "ip",
    ["netns", "exec", peer, "python3", join(folder, "client.py"), String(count)],
    { encoding: "utf8" },
  );
  const [cost = Number.NaN, failed = 1] = stdout.trim().split(" ").map(Number);
  if (failed !== 0) throw new Error(`${failed} connections failed`);
  return cost;
}

function shell(line: string): void {
  const { status, stderr } = spawnSync("sh", ["-c", line], { encoding: "utf8" });
  if (status !== 0) throw new Error(`${line}: ${stderr}`);
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}
