/**
 * What one connection costs the kernel with kmesh, and an exchange on an open one, in microseconds more than without:
 *
 *     bun bench/connect-cost.ts [--rounds N] [--sizes 10,1000,10000]
 *
 * A program connects, accepts and closes in a tight loop on one CPU (connect-loop.c), and its CPU time counts. With and
 * without kmesh take turns; differences are taken round by round, and their median is printed. Empty programs at the same
 * hooks show what the kernel takes for the hooks alone; names add a program for each packet on loopback.
 *
 * KMESH_BENCH_RIVALS=PROGRAM:PROGRAM... lets others take turns with kmesh. Each program is called in the network
 * namespace as "PROGRAM CGROUP SERVICE ENDPOINT" (ADDRESS:PORT both). It prints "ready" when connections from CGROUP to
 * SERVICE go to ENDPOINT, and detaches on SIGTERM. Its row has its file's name.
 */
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { CgroupLink } from "../src/kernel/link.ts";
import { BpfObject } from "../src/kernel/object.ts";
import { NetworkNamespace } from "../test/lab/namespace.ts";
import { eventually, OwnedProcess, output } from "../test/lab/process.ts";
import { flagsOf } from "./lab/flags.ts";
import { BenchMesh, compileC, requireTools, runAndClean } from "./lab/machine.ts";
import { median, pairedDifference, pairedRatio, printTable, progress } from "./lab/measure.ts";

const flags = flagsOf({
  rounds: { type: "string", default: "9" },
  sizes: { type: "string", default: "10,1000,10000" },
});
requireTools(["ip", "iproute2"], ["taskset", "util-linux"]);

const ENDPOINT = "172.31.1.1:8080";
const VIP = "10.61.0.1:80";
const EMPTY = join(import.meta.dirname, "../dist/test/empty.bpf.o");
const BLOCKS = 15;
const CONNECTIONS = 2_000;

/** Programs that attach what kmesh is compared with. */
const RIVALS = (process.env.KMESH_BENCH_RIVALS ?? "").split(":").filter((program) => program !== "");

/** Nanoseconds of a connection and of an exchange: the median of each round. */
interface Cost {
  connection: number[];
  exchange: number[];
}

const newCost = (): Cost => ({ connection: [], exchange: [] });

/** Runs the loop once with all targets, and adds to each target's costs. */
async function loop(
  program: string,
  place: { netns: string; cgroup?: string },
  targets: [target: string, cost: Cost][],
): Promise<void> {
  const [address = "", port = ""] = ENDPOINT.split(":");
  const names = targets.map(([target]) => target);
  const text = await output(
    ["taskset", "-c", "0", program, "-e", address, port, String(BLOCKS), String(CONNECTIONS), ...names],
    { ...place, timeoutMs: 120_000 },
  );
  const lines = text
    .trim()
    .split("\n")
    .map((line) => line.split(" ").map(Number));
  for (const [index, [, cost]] of targets.entries()) {
    const own = lines.filter(([of]) => of === index);
    cost.connection.push(median(own.map(([, connection = Number.NaN]) => connection)));
    cost.exchange.push(median(own.map(([, , exchange = Number.NaN]) => exchange)));
  }
}

const namespace = await NetworkNamespace.create("cost");
let mesh: BenchMesh | undefined;
await runAndClean(measure, async () => {
  await mesh?.remove();
  await namespace.remove();
});

async function measure(): Promise<void> {
  await namespace.addLoopback("172.31.1.1");
  const own = new BenchMesh(namespace.path);
  mesh = own;
  const program = await compileC("connect-loop", own.folder);
  const netns = namespace.path;
  const governed = { netns, cgroup: own.apps };
  const service = {
    host: "governed.bench",
    addresses: ["10.61.0.1"],
    port: 80,
    endpoints: [{ address: "172.31.1.1", port: 8080 }],
  };

  const rounds = Number(flags.rounds);
  const none = newCost();
  const floor = newCost();
  const cost = { service: newCost(), unit: newCost(), passed: newCost(), outside: newCost() };
  const rivals = RIVALS.map((path) => ({ path, name: basename(path), cost: newCost() }));
  await own.serve({ services: [service] });
  for (let round = 1; round <= rounds; round++) {
    progress(`with and without kmesh, round ${round} of ${rounds}`);
    const without = async () => {
      await own.down();
      await loop(program, governed, [[ENDPOINT, none]]);
    };
    // Programs that do nothing, at the same hooks: what no program can be cheaper than.
    const hooksAlone = async () => {
      await own.down();
      using object = BpfObject.open(readFileSync(EMPTY), "empty");
      object.load();
      using connect = CgroupLink.attach(object.program("connect4"), own.apps, "connect4");
      using release = CgroupLink.attach(object.program("sock_release"), own.apps, "sock_release");
      await loop(program, governed, [[ENDPOINT, floor]]);
      release.close();
      connect.close();
    };
    const withKmesh = async () => {
      await own.up();
      // A service, by a cgroup's app and by a unit's; an address that is none, by an enrolled app; the same by an app that is not enrolled.
      await loop(program, governed, [
        [VIP, cost.service],
        [ENDPOINT, cost.passed],
      ]);
      await loop(program, { netns, cgroup: own.unit }, [[VIP, cost.unit]]);
      await loop(program, { netns }, [[ENDPOINT, cost.outside]]);
    };
    const withRivals = async () => {
      await own.down();
      for (const rival of rivals) {
        const command = [rival.path, own.apps, VIP, ENDPOINT];
        const log = join(own.folder, `${rival.name}-${round}.log`);
        const attached = new OwnedProcess({ name: rival.name, command, netns, log });
        try {
          await eventually(`${rival.name} is ready`, () => {
            if (attached.status !== undefined) throw new Error(attached.tail());
            return /^ready$/m.test(attached.output());
          });
          await loop(program, governed, [[VIP, rival.cost]]);
        } finally {
          await attached.stop();
        }
      }
    };
    const turns = [without, hooksAlone, withKmesh, withRivals];
    for (const turn of round % 2 === 1 ? turns : turns.reverse()) await turn();
  }
  console.log(`Connect, accept and close on one CPU; an exchange of a byte each way; ${rounds} rounds:`);
  const row = (name: string, { connection, exchange }: Cost) => [
    name,
    median(connection) / 1000,
    pairedDifference(connection, none.connection) / 1000,
    pairedRatio(none.connection, connection),
    pairedDifference(exchange, none.exchange) / 1000,
  ];
  printTable(
    ["", "us", "us more", "speed against no mesh", "us more an exchange"],
    [
      row("no mesh", none),
      row("no mesh: empty programs at connect4 and sock_release", floor),
      row("governed: a service", cost.service),
      row("governed: a service, enrolled by unit name", cost.unit),
      row("not governed: enrolled app, no service", cost.passed),
      row("not governed: app not enrolled", cost.outside),
      ...rivals.map((rival) => row(`${rival.name}: a service`, rival.cost)),
    ],
  );

  const sizes = flags.sizes.split(",").map(Number);
  const bySize = new Map(sizes.map((size) => [size, newCost()]));
  await own.down();
  // Small and large meshes take turns too.
  const turns = Math.max(3, Math.ceil(rounds / 3));
  for (let round = 1; round <= turns; round++) {
    for (const [size, sized] of bySize) {
      progress(`${size} services, round ${round} of ${turns}`);
      await own.serve({ services: [service], many: { count: size, endpoints: 10 } });
      await own.up();
      await loop(program, governed, [[VIP, sized]]);
      await own.down();
    }
  }
  const [smallest = newCost()] = bySize.values();
  console.log("\nA governed connection by the size of the mesh:");
  printTable(
    ["services", "us", "against the smallest"],
    [...bySize].map(([size, { connection }]) => [
      String(size),
      median(connection) / 1000,
      pairedRatio(connection, smallest.connection),
    ]),
  );
}
