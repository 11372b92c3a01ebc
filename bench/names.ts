/**
 * What names cost: a query's round trip against dnsmasq and unbound on the same machine with the same name, packets that
 * are not DNS with and without the programs, and the table at 10 to 100,000 names. In a network namespace of its own, as
 * root: `bun bench/names.ts`. Where iperf3, dnsmasq or unbound is missing it says so and leaves it out.
 */
import { spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { innerMap } from "../src/datapath/tables/inner-map.ts";
import { ensureBpffs, unpin } from "../src/kernel/bpffs.ts";
import { loopbackUp, unshareNetns } from "../src/kernel/netns.ts";
import { KernelNative } from "../src/kernel-native/kernel-native.ts";
import { istio } from "../src/kernel-native/resources/envoy.gen.js";
import { attachEverywhere, detachEverywhere } from "../src/names/attach.ts";
import { Entries, type Entry } from "../src/names/entries.ts";
import { NAME_FLAGS } from "../src/names/name-table.ts";
import { closeNames, linkFolder, openNames } from "../src/names/pins.ts";
import { frameOf, queryMessage } from "../src/names/query.ts";
import { hash53 } from "../src/runtime/hash.ts";
import { flagsOf } from "./lab/flags.ts";
import { compileC } from "./lab/machine.ts";
import { median } from "./lab/measure.ts";

flagsOf({});

const HOST = "shop.demo.internal";
const ADDRESS = "10.99.0.1";
/** Queries of one measurement of the round trip, and rounds of everything: the median counts. */
const QUERIES = 3_000;
const ROUNDS = 5;
/** Times that the programs are switched on and off under one load. */
const SWITCHES = 60;
/** Of one count, and between a switch and the count, milliseconds: the queues empty, the old program's last run ends. */
const SLICE = 90;
const SETTLE = 10;
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
  await sleep(1_500);
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

/** What a counter gains a second, in one slice of time with or without the programs attached. */
async function rate(counter: () => number, on: boolean): Promise<number> {
  attach(on);
  await sleep(SETTLE);
  const [from, began] = [counter(), performance.now()];
  await sleep(SLICE);
  const [to, ended] = [counter(), performance.now()];
  return ((to - from) * 1_000) / (ended - began);
}

/** Under one load that goes on: slices without, with, with and without the programs, so that a drift cancels out. */
async function compare(what: string, unit: string, scale: number, counter: () => number): Promise<void> {
  const ratios: number[] = [];
  const noise: number[] = [];
  const rates: number[] = [];
  for (let round = 0; round < SWITCHES; round++) {
    const [off, on, onAgain, offAgain] = [
      await rate(counter, false),
      await rate(counter, true),
      await rate(counter, true),
      await rate(counter, false),
    ];
    ratios.push((on + onAgain) / (off + offAgain));
    noise.push(offAgain / off);
    rates.push(off);
  }
  const spread = (values: readonly number[]) => {
    const sorted = [...values].sort((one, other) => one - other);
    const at = (share: number) => (sorted[Math.floor(sorted.length * share)] ?? Number.NaN).toFixed(3);
    return `${median(values).toFixed(4)} (quartiles ${at(0.25)} to ${at(0.75)})`;
  };
  console.log(`  ${what}: ${(median(rates) / scale).toFixed(1)} ${unit} without`);
  console.log(`    with by without     ${spread(ratios)}`);
  console.log(`    without by without  ${spread(noise)}`);
}

function number(file: string, pattern: RegExp): number {
  return Number(pattern.exec(readFileSync(file, "utf8"))?.[1]);
}

async function otherPackets(): Promise<void> {
  console.log(`packets that are no DNS, ${SWITCHES} rounds of four slices of ${SLICE} ms (medians):`);
  const seconds = Math.ceil((SWITCHES * 4 * (SLICE + SETTLE)) / 1_000) * 2 + 5;
  const loop = await compileC("connect-loop", folder);
  const load = spawn(loop, ["127.0.0.1", "5304", String(1 << 20), "100000", "127.0.0.1:5304"], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  await sleep(300);
  // Of this network namespace: nobody else connects here.
  await compare("new connections", "thousand a second", 1e3, () =>
    number("/proc/self/net/snmp", /Tcp:(?: -?\d+){4} (\d+)/),
  );
  load.kill("SIGKILL");
  if (start("/usr/bin/iperf3", "-s", "-p", "5303")) {
    await sleep(300);
    const client = spawn("iperf3", ["-c", "127.0.0.1", "-p", "5303", "-t", String(seconds)], {
      stdio: "ignore",
    });
    await sleep(500);
    await compare("one iperf3 stream", "Gbit/s", 1e9, () => 8 * number("/proc/self/net/dev", /lo: *(\d+)/));
    client.kill("SIGKILL");
  }
  attach(false);
  const program = names.programs.get("names_loopback");
  if (!program) throw new Error("names_loopback is missing");
  const tcp = frameOf(new Uint8Array(1_000));
  tcp[23] = 6;
  const runs = Array.from({ length: 3 * ROUNDS }, () => program.testRun(tcp, 200_000).nanoseconds);
  console.log(`  one TCP packet: ${median(runs)} ns, what BPF_PROG_TEST_RUN takes itself included`);
}

/** Bytes that the kernel says a map takes. */
function mapBytes(map: { fd: number }): number {
  return number(`/proc/self/fdinfo/${map.fd}`, /memlock:\s+(\d+)/);
}

/** Records and the hash, as the kernel allocates them; the small maps beside do not grow. */
function tableBytes(): number {
  using hash = innerMap(names.maps.names);
  return names.table.bytes + (hash ? mapBytes(hash) : 0);
}

/** istiod's table of names, as it comes: all of them when one changes. */
function nameTable(size: number, host: (i: number) => string, address: (i: number) => string): Uint8Array {
  const all = Array.from({ length: size }, (_, i): [string, { ips: string[] }] => [
    host(i),
    { ips: [address(i)] },
  ]);
  return istio.NameTable.encode({ table: Object.fromEntries(all) }).finish();
}

/**
 * Milliseconds from a received table of names, of which one has another address, to the answer in the kernel: the median,
 * and the least.
 */
function receivedToLive(size: number, host: (i: number) => string, address: (i: number) => string): string {
  const entries = new Entries();
  const native = new KernelNative({
    ...{ allowPlaintext: false, tunnel: false, excluded: [] },
    publish(mesh, changes) {
      const touched = new Set<string>();
      const hosts = changes.everything ? mesh.names.keys() : changes.names;
      for (const name of hosts) entries.set(name, mesh.names.get(name), touched);
      names.table.apply([...touched].map((name) => [name, entries.get(name)] as const));
    },
  });
  const times: number[] = [];
  const tables = [1, 2].map((last) =>
    nameTable(size, host, (i) => (i === size >> 1 ? `10.201.0.${last}` : address(i))),
  );
  for (let round = 0; round < 40; round++) {
    const bytes = tables[round % 2] ?? new Uint8Array();
    const began = performance.now();
    hash53(bytes);
    native.upsert("names", "", bytes);
    native.commit();
    // The first is all of them.
    if (round > 0) times.push(performance.now() - began);
  }
  native.close();
  return `${median(times).toFixed(2)} (${Math.min(...times).toFixed(2)})`;
}

function tables(): void {
  console.log(
    "names     fill ms   one change ms   received to live ms (least)  look-up ns (ratio to 10)   kernel MB",
  );
  const program = names.programs.get("names_loopback");
  if (!program) throw new Error("names_loopback is missing");
  const host = (i: number) => `svc-${100_000 + i}.some-namespace.svc.cluster.local`;
  const address = (i: number) => `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`;
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
    // Shadow mode finds the entry, builds the answer and lets the packet on as it is, so that it can be asked again. All
    // names are equally long: a longer name takes longer to read.
    names.table.flags = NAME_FLAGS.NAMES_ON | NAME_FLAGS.NAMES_EVERY_CGROUP | NAME_FLAGS.NAMES_SHADOW;
    const frames = Array.from({ length: 64 }, (_, i) => frameOf(queryMessage(host((i * 7919) % size), "A")));
    const rounds = Array.from(
      { length: 3 * ROUNDS },
      () => frames.reduce((sum, frame) => sum + program.testRun(frame, 1_000).nanoseconds, 0) / frames.length,
    );
    names.table.flags = NAME_FLAGS.NAMES_ON | NAME_FLAGS.NAMES_EVERY_CGROUP;
    const cost = median(rounds);
    const bytes = tableBytes();
    const received = receivedToLive(size, host, address);
    first ||= cost;
    console.log(
      `${String(size).padEnd(9)} ${fill.toFixed(1).padEnd(9)} ${median(changes).toFixed(3).padEnd(15)} ${received.padEnd(28)} ${`${cost.toFixed(0)} (${(cost / first).toFixed(3)})`.padEnd(26)} ${(bytes / 1e6).toFixed(1)}`,
    );
  }
}
