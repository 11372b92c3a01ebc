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
import { Talker } from "./continuity/talker.ts";
import { flagsOf } from "./lab/flags.ts";

flagsOf({});

const SIZES = [0, 10, 1_000] as const;
/** Connections of one measurement, a few milliseconds: the machine's own ups and downs are longer. */
const CONNECTIONS = 150;
/** Before each measurement, not counted: a program was attached or detached just now. */
const WARM = 50;
/**
 * Each measures without the program, with it and each number of policies, and without it again. What counts is the median of
 * the rounds' ratios.
 */
const ROUNDS = 60;
/** Measurements of the program's own time for each number of policies, in turn. */
const TIMES = 9;
const PORT = 8080;

const SERVER = `
import socket
one = socket.socket(); one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind(("0.0.0.0", ${PORT})); one.listen(1024); print("ready", flush=True)
while True: one.accept()[0].close()
`;
const CLIENT = `
import socket, struct, sys, time
for line in sys.stdin:
    count, failed = int(line), 0
    for i in range(count + ${WARM}):
        if i == ${WARM}: begun, used = time.perf_counter(), time.process_time()
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try: one.connect(("10.78.0.1", ${PORT}))
        except OSError: failed += 1
        one.close()
    print((time.perf_counter() - begun) / count * 1e6, (time.process_time() - used) / count * 1e6, failed, flush=True)
`;

unshareNetns();
loopbackUp();
const folder = mkdtempSync(join(tmpdir(), "kmesh-bench-inbound-"));
const bpffs = `/sys/fs/bpf/kmesh_bench_${process.pid}`;
const peer = `kmb${process.pid}`;
ensureBpffs(bpffs);
let keeper: InboundKeeper | undefined;
/** Milliseconds from a set of so many policies until it governed, the last time. */
const live = new Map<number, number>();
let client: Talker | undefined;
const server = spawn("python3", ["-c", SERVER], { stdio: ["ignore", "pipe", "inherit"] });
try {
  await once(server.stdout, "data");
  shell(`ip netns add ${peer}`);
  shell(`ip link add kmb0 type veth peer name kmb1 netns ${peer}`);
  shell("ip addr add 10.78.0.1/24 dev kmb0 && ip link set kmb0 up");
  shell(`ip -n ${peer} addr add 10.78.0.2/24 dev kmb1 && ip -n ${peer} link set kmb1 up`);
  client = new Talker(
    "client",
    ["ip", "netns", "exec", peer, "python3", "-c", CLIENT],
    join(folder, "client"),
  );
  await connectionsOf(1000);
  console.log(`${ROUNDS} rounds of ${CONNECTIONS} connections without, with, and without the program:`);
  const rounds: { before: Cost; on: Map<number, Cost>; after: Cost }[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    detach();
    const before = await connectionsOf(CONNECTIONS);
    const on = new Map<number, Cost>();
    for (const [i] of SIZES.entries()) {
      const size = SIZES[(i + round) % SIZES.length] ?? 0;
      attach(size);
      on.set(size, await connectionsOf(CONNECTIONS));
    }
    detach();
    rounds.push({ before, on, after: await connectionsOf(CONNECTIONS) });
  }
  for (const size of SIZES) {
    const told = (["wall", "cpu"] as const).map((kind) => {
      const of = (each: (typeof rounds)[number], count: number) => each.on.get(count)?.[kind] ?? Number.NaN;
      const ratio = median(rounds.map((each) => (each.before[kind] + each.after[kind]) / 2 / of(each, size)));
      const noise = rounds.map(({ before, after }) => before[kind] / after[kind]);
      const cost = median(rounds.map((each) => of(each, size)));
      const flat = median(rounds.map((each) => of(each, size) / of(each, SIZES[0])));
      return `${kind} ${cost.toFixed(2)} us, ${flat.toFixed(3)} of that with none, rate ${ratio.toFixed(3)} of without (without: ${median(noise).toFixed(3)}, half within ${spread(noise)})`;
    });
    console.log(`${String(size).padStart(5)} policies: a connection takes ${told.join("; ")}`);
  }
  const times = new Map(SIZES.map((size) => [size, [] as number[]] as const));
  for (let i = 0; i < TIMES; i++)
    for (const size of SIZES) {
      attach(size);
      times.get(size)?.push(await programTime());
    }
  for (const [size, each] of times)
    console.log(
      `${size} policies: the program takes ${median(each).toFixed(0)} ns a run, half within ${spread(each, 0)}; they were live after ${live.get(size)?.toFixed(1)} ms`,
    );
} finally {
  detach();
  await client?.end();
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
  const { attached, trouble, lastMilliseconds } = keeper.status();
  if (lastMilliseconds !== undefined) live.set(size, lastMilliseconds);
  if (!attached) throw new Error(trouble ?? "not attached");
}

function detach(): void {
  keeper?.close();
  keeper = undefined;
  unpin(linkPin(bpffs));
}

/** Nanoseconds a run of the program, over some connections, by the kernel's own statistics. */
async function programTime(): Promise<number> {
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
    await connectionsOf(10 * CONNECTIONS);
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

/** Microseconds a connection: by the clock, and of CPU of the client, in whose context the kernel does both ends' handshake. */
interface Cost {
  wall: number;
  cpu: number;
}

/** From the peer's namespace. Rejects when one is refused. */
async function connectionsOf(count: number): Promise<Cost> {
  const answer = (await client?.ask(String(count))) ?? "";
  const [wall = Number.NaN, cpu = Number.NaN, failed = 1] = answer.split(" ").map(Number);
  if (failed !== 0) throw new Error(`${failed} connections failed`);
  return { wall, cpu };
}

/** The middle half of the values. */
function spread(values: readonly number[], digits = 3): string {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) => (sorted[Math.floor(sorted.length * share)] ?? Number.NaN).toFixed(digits);
  return `${at(0.25)} to ${at(0.75)}`;
}

function shell(line: string): void {
  const { status, stderr } = spawnSync("sh", ["-c", line], { encoding: "utf8" });
  if (status !== 0) throw new Error(`${line}: ${stderr}`);
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}
