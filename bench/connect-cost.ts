/**
 * What one connection costs the kernel with kmesh, in microseconds more than without:
 *
 *     bun bench/connect-cost.ts [--rounds N] [--sizes 10,1000,10000]
 *
 * A program connects, accepts and closes in a tight loop on one CPU (connect-loop.c). With and without kmesh take
 * turns; differences are taken round by round, and their median is printed. Empty programs at the same hooks show what
 * the kernel takes for the hooks alone; names add a program for each packet on loopback.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { CgroupLink } from "../src/kernel/link.ts";
import { BpfObject } from "../src/kernel/object.ts";
import { NetworkNamespace } from "../test/lab/namespace.ts";
import { output } from "../test/lab/process.ts";
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

/** Gives the median nanoseconds of a connection to each target. */
async function loop(
  program: string,
  place: { netns: string; cgroup?: string },
  targets: string[],
): Promise<number[]> {
  const [address = "", port = ""] = ENDPOINT.split(":");
  const text = await output(
    ["taskset", "-c", "0", program, address, port, String(BLOCKS), String(CONNECTIONS), ...targets],
    { ...place, timeoutMs: 120_000 },
  );
  const blocks: number[][] = targets.map(() => []);
  for (const line of text.trim().split("\n")) {
    const [index, value] = line.split(" ").map(Number);
    blocks[index ?? 0]?.push(value ?? Number.NaN);
  }
  return blocks.map(median);
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
  const none: number[] = [];
  const cost = {
    floor: [] as number[],
    service: [] as number[],
    unit: [] as number[],
    passed: [] as number[],
    outside: [] as number[],
  };
  await own.serve({ services: [service] });
  for (let round = 1; round <= rounds; round++) {
    progress(`with and without kmesh, round ${round} of ${rounds}`);
    const without = async () => {
      await own.down();
      const [direct = Number.NaN] = await loop(program, governed, [ENDPOINT]);
      none.push(direct);
    };
    // Programs that do nothing, at the same hooks: what no program can be cheaper than.
    const hooksAlone = async () => {
      await own.down();
      using object = BpfObject.open(readFileSync(EMPTY), "empty");
      object.load();
      using connect = CgroupLink.attach(object.program("connect4"), own.apps, "connect4");
      using release = CgroupLink.attach(object.program("sock_release"), own.apps, "sock_release");
      const [floor = Number.NaN] = await loop(program, governed, [ENDPOINT]);
      cost.floor.push(floor);
      release.close();
      connect.close();
    };
    const withKmesh = async () => {
      await own.up();
      // A service, by a cgroup's app and by a unit's; an address that is none, by an enrolled app; the same by an app that is not enrolled.
      const [one = Number.NaN, passed = Number.NaN] = await loop(program, governed, [VIP, ENDPOINT]);
      const [byName = Number.NaN] = await loop(program, { netns, cgroup: own.unit }, [VIP]);
      const [outside = Number.NaN] = await loop(program, { netns }, [ENDPOINT]);
      cost.service.push(one);
      cost.unit.push(byName);
      cost.passed.push(passed);
      cost.outside.push(outside);
    };
    if (round % 2 === 1) {
      await without();
      await hooksAlone();
      await withKmesh();
    } else {
      await withKmesh();
      await hooksAlone();
      await without();
    }
  }
  console.log(`One connection (connect, accept, close on one CPU), ${rounds} rounds:`);
  const row = (name: string, values: number[]) => [
    name,
    median(values) / 1000,
    pairedDifference(values, none) / 1000,
    pairedRatio(none, values),
  ];
  printTable(
    ["", "us", "us more", "speed against no mesh"],
    [
      ["no mesh", median(none) / 1000, 0, 1],
      row("no mesh: empty programs at connect4 and sock_release", cost.floor),
      row("governed: a service", cost.service),
      row("governed: a service, enrolled by unit name", cost.unit),
      row("not governed: enrolled app, no service", cost.passed),
      row("not governed: app not enrolled", cost.outside),
    ],
  );

  const sizes = flags.sizes.split(",").map(Number);
  const bySize = new Map<number, number[]>(sizes.map((size) => [size, []]));
  await own.down();
  // Small and large meshes take turns too.
  const turns = Math.max(3, Math.ceil(rounds / 3));
  for (let round = 1; round <= turns; round++) {
    for (const size of sizes) {
      progress(`${size} services, round ${round} of ${turns}`);
      await own.serve({ services: [service], many: { count: size, endpoints: 10 } });
      await own.up();
      const [one = Number.NaN] = await loop(program, governed, [VIP]);
      bySize.get(size)?.push(one);
      await own.down();
    }
  }
  const smallest = bySize.get(sizes[0] ?? 0) ?? [];
  console.log("\nA governed connection by the size of the mesh:");
  printTable(
    ["services", "us", "against the smallest"],
    sizes.map((size) => {
      const values = bySize.get(size) ?? [];
      return [String(size), median(values) / 1000, pairedRatio(values, smallest)];
    }),
  );
}
