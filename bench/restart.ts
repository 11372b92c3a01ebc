/**
 * What a restart of the agent takes at 10,000 services with 100,000 endpoints:
 *
 *     bun bench/restart.ts [--services N] [--endpoints N-A-SERVICE] [--rounds N]
 *
 * From exec to adopted (the agent answers, and says that it took over what was pinned) and to in sync with istiod, and
 * the map writes that it took though nothing had changed; beside a start that finds nothing pinned, and a null client
 * that only receives and acknowledges. They take turns.
 */
import { statSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { adminSocket } from "../src/admin/status.ts";
import { NetworkNamespace } from "../test/lab/namespace.ts";
import { output, sleep } from "../test/lab/process.ts";
import { BenchMesh, requireTools, runAndClean } from "./machine.ts";
import { median, pairedRatio, printTable, progress } from "./measure.ts";

const { values: flags } = parseArgs({
  options: {
    services: { type: "string", default: "10000" },
    endpoints: { type: "string", default: "10" },
    rounds: { type: "string", default: "5" },
  },
});
requireTools(["ip", "iproute2"]);
const services = Number(flags.services);
const endpoints = Number(flags.endpoints);
const rounds = Number(flags.rounds);

interface Start {
  /** From exec, ms. */
  answers: number;
  inSync: number;
  writes: number;
  adopted: boolean;
}

/** Starts the agent and waits until it is in sync. */
async function start(mesh: BenchMesh): Promise<Start> {
  const socket = adminSocket(join(mesh.folder, "run"));
  const before = changeOf(socket);
  const began = performance.timeOrigin + performance.now();
  const up = mesh.up();
  // The agent listens once it has its tables. A dead one's socket is still there, so it must be a newer one.
  let answers = Number.NaN;
  while (Number.isNaN(answers)) {
    const now = changeOf(socket);
    if (now !== undefined && now !== before) answers = performance.timeOrigin + performance.now() - began;
    else await sleep(1);
  }
  await up;
  const status = await mesh.agentStatus();
  if (!status) throw new Error("the agent does not answer");
  return {
    answers,
    inSync: Date.parse(status.tables.firstApplyAt ?? "") - began,
    writes: status.tables.firstWrites ?? Number.NaN,
    adopted: status.adopted,
  };
}

function changeOf(path: string): bigint | undefined {
  return statSync(path, { bigint: true, throwIfNoEntry: false })?.ctimeNs;
}

const namespace = await NetworkNamespace.create("rest");
let mesh: BenchMesh | undefined;
await runAndClean(bench, async () => {
  await mesh?.remove();
  await namespace.remove();
});

async function bench(): Promise<void> {
  const own = new BenchMesh(namespace.path);
  mesh = own;
  await own.serve({ services: [], many: { count: services, endpoints } });
  const nulls: number[] = [];
  const empty: Start[] = [];
  const again: Start[] = [];
  for (let round = 1; round <= rounds; round++) {
    progress(`round ${round} of ${rounds}`);
    const client = join(import.meta.dirname, "null-client.ts");
    const text = await output([process.execPath, client, "127.0.0.1:15010"], { netns: namespace.path });
    nulls.push((JSON.parse(text) as { milliseconds: number }).milliseconds);
    empty.push(await start(own));
    // What waits for a grace period is over.
    await sleep(2_000);
    await own.agent.stop("SIGKILL");
    const restarted = await start(own);
    if (!restarted.adopted) throw new Error("the agent took over nothing");
    again.push(restarted);
    await own.down();
  }
  console.log(`${services} services, ${services * endpoints} endpoints, ${rounds} rounds, from exec:`);
  const row = (name: string, starts: Start[]) => {
    const inSync = starts.map((each) => each.inSync);
    return [
      name,
      median(starts.map(({ answers }) => answers)),
      Math.max(...starts.map(({ answers }) => answers)),
      median(inSync),
      Math.max(...inSync),
      median(starts.map(({ writes }) => writes)),
      pairedRatio(inSync, nulls),
    ];
  };
  printTable(
    ["", "answers, ms", "worst", "in sync, ms", "worst", "map writes", "times the null client"],
    [row("killed and started: adopts what is pinned", again), row("nothing pinned", empty)],
  );
  console.log(
    `\nThe null client has received and acknowledged everything ${Math.round(median(nulls))} ms after connecting.`,
  );
}
