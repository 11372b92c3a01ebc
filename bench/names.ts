/**
 * What names cost: a query's round trip against dnsmasq and unbound on the same machine with the same name, packets that
 * are not DNS with and without the programs, and the table at 10 to 100,000 names. In a network namespace of its own, as
 * root: `bun bench/names.ts`. Where iperf3, dnsmasq or unbound is missing it says so and leaves it out.
 */
import { spawn, spawnSync } from "node:child_process";
import { createSocket } from "node:dgram";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensureBpffs, unpin } from "../src/kernel/bpffs.ts";
import { loopbackUp, unshareNetns } from "../src/kernel/netns.ts";
import { attachEverywhere, detachEverywhere } from "../src/names/attach.ts";
import type { Entry } from "../src/names/entries.ts";
import { NAME_FLAGS } from "../src/names/name-table.ts";
import { closeNames, linkFolder, openNames } from "../src/names/pins.ts";
import { frameOf, queryMessage } from "../src/names/query.ts";

const HOST = "shop.demo.internal";
const ADDRESS = "10.99.0.1";
/** Queries of one measurement of the round trip, and rounds of everything: the median counts. */
const QUERIES = 3_000;
const ROUNDS = 5;
const SIZES = [10, 1_000, 10_000, 100_000] as const;

unshareNetns();
loopbackUp();
const folder = mkdtempSync(join(tmpdir(), "kmesh-bench-names-"));
const bpffs = `/sys/fs/bpf/kmesh_bench_${process.pid}`;
ensureBpffs(bpffs);
mkdirSync(join(bpffs, "keep"));
const names = openNames(bpffs);
const servers: (() => void)[] = [];
try {
  names.table.apply([[HOST, entryOf(HOST, ADDRESS)]]);
  names.table.flags = NAME_FLAGS.NAMES_ON | NAME_FLAGS.NAMES_EVERY_CGROUP;
  await roundTrips();
  await otherPackets();
  tables();
} finally {
  for (const stop of servers) stop();
  detachEverywhere(linkFolder(bpffs));
  closeNames(names);
  unpin(bpffs);
  rmSync(folder, { recursive: true, force: true });
}
process.exit(0);

function entryOf(name: string, address: string): Entry {
  return { kind: "addresses", name, addresses: [address] };
}

function attach(on: boolean): void {
  if (on) attachEverywhere(linkFolder(bpffs), names.programs, new Map());
  else detachEverywhere(linkFolder(bpffs));
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

/** Microseconds of one query and its answer, one after the other; NaN when nobody answers. */
async function roundTrip(port: number): Promise<number> {
  const socket = createSocket("udp4");
  const message = queryMessage(HOST, "A");
  const ask = () =>
    new Promise<boolean>((resolve) => {
      const timer = setTimeout(() => resolve(false), 1_000);
      socket.once("message", () => {
        clearTimeout(timer);
        resolve(true);
      });
      socket.send(message, port, "127.0.0.1");
    });
  try {
    for (let i = 0; i < 200; i++) if (!(await ask())) return Number.NaN;
    const began = performance.now();
    for (let i = 0; i < QUERIES; i++) await ask();
    return ((performance.now() - began) * 1_000) / QUERIES;
  } finally {
    socket.close();
  }
}

function start(command: string, ...args: string[]): boolean {
  if (!existsSync(command)) {
    console.log(`${command} is missing: left out`);
    return false;
  }
  const child = spawn(command, args, { stdio: "ignore" });
  servers.push(() => child.kill("SIGKILL"));
  return true;
}

async function roundTrips(): Promise<void> {
  writeFileSync(
    join(folder, "unbound.conf"),
    `server:\n directory: "${folder}"\n chroot: ""\n username: ""\n pidfile: ""\n use-syslog: no\n interface: 127.0.0.1@5302\n do-ip6: no\n local-zone: "internal." static\n local-data: "${HOST}. 30 IN A ${ADDRESS}"\n`,
  );
  const dnsmasq = start(
    ...(["/usr/sbin/dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"] as const),
    ...["--user=root", "--pid-file=", "--port=5301", "--listen-address=127.0.0.1", "--bind-interfaces"],
    `--address=/${HOST}/${ADDRESS}`,
  );
  const unbound = start("/usr/sbin/unbound", "-d", "-c", join(folder, "unbound.conf"));
  await new Promise((resolve) => setTimeout(resolve, 1_500));
  const peers = [
    { name: "kernel", port: 53, there: true, found: [] as number[] },
    { name: "dnsmasq", port: 5301, there: dnsmasq, found: [] as number[] },
    { name: "unbound", port: 5302, there: unbound, found: [] as number[] },
  ];
  attach(true);
  for (let round = 0; round < ROUNDS; round++)
    for (const peer of peers) if (peer.there) peer.found.push(await roundTrip(peer.port));
  attach(false);
  const own = median(peers[0]?.found ?? []);
  console.log("round trip of one query, from a JavaScript client (us; ratio to the kernel):");
  for (const { name, found } of peers)
    if (found.length > 0)
      console.log(`  ${name.padEnd(8)} ${median(found).toFixed(1)}  ${(median(found) / own).toFixed(2)}`);
}

/** Connections a second that are made one after the other, for half a second. */
async function connections(port: number): Promise<number> {
  const until = performance.now() + 500;
  let made = 0;
  while (performance.now() < until) {
    await new Promise<void>((resolve, reject) => {
      const socket = connect(port, "127.0.0.1", () => socket.destroy());
      socket.on("close", () => resolve());
      socket.on("error", reject);
    });
    made++;
  }
  return made * 2;
}

/** Gbit/s of one stream over loopback. */
function stream(): number {
  const { stdout } = spawnSync("iperf3", ["-c", "127.0.0.1", "-p", "5303", "-t", "1", "-J"], {
    encoding: "utf8",
  });
  return JSON.parse(stdout).end.sum_received.bits_per_second / 1e9;
}

async function otherPackets(): Promise<void> {
  const server = createServer((socket) => socket.on("error", () => {}).resume());
  await new Promise<void>((resolve) => server.listen(5304, "127.0.0.1", resolve));
  const iperf = start("/usr/bin/iperf3", "-s", "-p", "5303");
  await new Promise((resolve) => setTimeout(resolve, 300));
  const pairs = { connections: [] as number[], stream: [] as number[] };
  const order = [true, false];
  for (let round = 0; round < 2 * ROUNDS; round++) {
    const found = { connections: [0, 0], stream: [0, 0] };
    // In turn, so that a machine that gets slower hits both.
    for (const on of round % 2 === 0 ? order : [...order].reverse()) {
      attach(on);
      found.connections[on ? 1 : 0] = await connections(5304);
      if (iperf) found.stream[on ? 1 : 0] = stream();
    }
    pairs.connections.push((found.connections[1] ?? 0) / (found.connections[0] ?? 1));
    pairs.stream.push((found.stream[1] ?? 0) / (found.stream[0] ?? 1));
  }
  attach(false);
  server.close();
  console.log("packets that are no DNS, with the program by without it (median of the pairs' ratios):");
  console.log(`  new connections/s  ${median(pairs.connections).toFixed(3)}`);
  if (iperf) console.log(`  one iperf3 stream  ${median(pairs.stream).toFixed(3)}`);
}

/** Kilobytes of memory that is free or can be freed: what the kernel's tables take is not in any process. */
function available(): number {
  return Number(/MemAvailable:\s+(\d+)/.exec(readFileSync("/proc/meminfo", "utf8"))?.[1]);
}

function tables(): void {
  console.log("names     fill ms   one change ms   look-up ns (ratio to 10)   MB");
  const explain = names.programs.get("names_explain");
  if (!explain) throw new Error("names_explain is missing");
  const host = (i: number) => `svc-${i}.some-namespace.svc.cluster.local`;
  const address = (i: number) => `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`;
  const before = available();
  let there = 0;
  let first = 0;
  for (const size of SIZES) {
    const fresh = Array.from({ length: size - there }, (_, i): [string, Entry] => {
      const name = host(there + i);
      return [name, entryOf(name, address(there + i))];
    });
    there = size;
    let began = performance.now();
    names.table.apply(fresh);
    const fill = performance.now() - began;
    const changes: number[] = [];
    for (let i = 0; i < 50; i++) {
      const name = host((i * 7919) % size);
      began = performance.now();
      names.table.apply([[name, entryOf(name, `10.200.0.${i + 1}`)]]);
      changes.push(performance.now() - began);
    }
    const frames = Array.from({ length: 64 }, (_, i) => frameOf(queryMessage(host((i * 7919) % size), "MX")));
    const rounds: number[] = [];
    for (let round = 0; round < 3 * ROUNDS; round++) {
      let sum = 0;
      for (const frame of frames) sum += explain.testRun(frame, 1).nanoseconds;
      rounds.push(sum / frames.length);
    }
    const cost = Math.min(...rounds);
    first ||= cost;
    console.log(
      `${String(size).padEnd(9)} ${fill.toFixed(1).padEnd(9)} ${median(changes).toFixed(3).padEnd(15)} ${`${cost.toFixed(0)} (${(cost / first).toFixed(2)})`.padEnd(26)} ${((before - available()) / 1024).toFixed(1)}`,
    );
  }
}
