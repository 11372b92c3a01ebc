/**
 * What a restart of the agent takes at 10,000 services with 100,000 endpoints:
 *
 *     bun bench/restart.ts [--services N] [--endpoints N-A-SERVICE] [--rounds N]
 *
 * From exec (with nsenter and setpriv before it) to three moments, and the map writes that it took though nothing had
 * changed; beside a start that finds nothing pinned, and a null client that only receives and acknowledges. They take
 * turns. The moments:
 *
 *     adopted      what was pinned is open and checked, enrolment and exclusions are as configured, hooks that were lost
 *                  hang again: the tables are this agent's from now on, by its own word (tables.openedAt)
 *     answering    the admin socket answers, and says so
 *     in sync      istiod's first complete push is compared with all that the kernel holds, and the difference written
 *
 * And the time from exec to governing when a reboot has emptied bpffs and istiod is away: from the snapshot.
 */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { adminSocket } from "../src/admin/status.ts";
import { snapshotFile } from "../src/state/snapshot.ts";
import { NetworkNamespace } from "../test/lab/namespace.ts";
import { eventually, output, sleep } from "../test/lab/process.ts";
import { flagsOf } from "./lab/flags.ts";
import { BenchMesh, requireTools, runAndClean } from "./lab/machine.ts";
import { cpuTime, figure, median, pairedRatio, printTable, progress } from "./lab/measure.ts";

const flags = flagsOf({
  services: { type: "string", default: "10000" },
  endpoints: { type: "string", default: "10" },
  rounds: { type: "string", default: "5" },
});
requireTools(["ip", "iproute2"]);
const services = Number(flags.services);
const endpoints = Number(flags.endpoints);
const rounds = Number(flags.rounds);

/** What a restart may take, at 10,000 services with 100,000 endpoints. */
const LIMITS = { adopted: 100, inSync: 1_000, writes: 0, reboot: 1_000 };

interface Start {
  /** From exec, ms. */
  adopted: number;
  answering: number;
  inSync: number;
  /** User and system time until it was seen to be in sync, ms. */
  cpu: number;
  writes: number;
  /** Whether it found tables. */
  found: boolean;
}

/** Starts the agent and waits until it is in sync. */
async function start(mesh: BenchMesh): Promise<Start> {
  const socket = adminSocket(join(mesh.folder, "run"));
  const before = changeOf(socket);
  const began = performance.timeOrigin + performance.now();
  const up = mesh.up();
  // A dead agent's socket is still there, so it must be a newer one.
  let answering = Number.NaN;
  while (Number.isNaN(answering)) {
    const now = changeOf(socket);
    if (now !== undefined && now !== before) answering = performance.timeOrigin + performance.now() - began;
    else await sleep(1);
  }
  await up;
  const cpu = cpuTime(mesh.agent.pid);
  const status = await mesh.agentStatus();
  if (!status) throw new Error("the agent does not answer");
  return {
    adopted: Date.parse(status.tables.openedAt ?? "") - began,
    answering,
    inSync: Date.parse(status.tables.firstApplyAt ?? "") - began,
    cpu,
    writes: status.tables.firstWrites ?? Number.NaN,
    found: status.adopted,
  };
}

/** Starts the agent where nothing is pinned and istiod is away. Gives the ms until connections are governed. */
async function startFromSnapshot(mesh: BenchMesh): Promise<number> {
  await mesh.stopServing();
  await mesh.reboot();
  const began = performance.timeOrigin + performance.now();
  const agent = mesh.launch();
  const appliedAt = await eventually("the snapshot governs", async () => {
    if (agent.status !== undefined) throw new Error(agent.tail());
    return (await mesh.agentStatus())?.snapshot?.appliedAt;
  });
  return Date.parse(appliedAt) - began;
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
  const nulls: number[] = [];
  const empty: Start[] = [];
  const again: Start[] = [];
  const rebooted: number[] = [];
  for (let round = 1; round <= rounds; round++) {
    progress(`round ${round} of ${rounds}`);
    await own.serve({ services: [], many: { count: services, endpoints } });
    const client = join(import.meta.dirname, "lab/null-client.ts");
    const text = await output([process.execPath, client, "127.0.0.1:15010"], { netns: namespace.path });
    nulls.push((JSON.parse(text) as { milliseconds: number }).milliseconds);
    empty.push(await start(own));
    // What waits for a grace period is over.
    await sleep(2_000);
    await own.agent.stop("SIGKILL");
    const restarted = await start(own);
    if (!restarted.found) throw new Error("the agent took over nothing");
    again.push(restarted);
    await eventually("the snapshot is written", () => existsSync(snapshotFile(own.stateFolder)), 60_000);
    rebooted.push(await startFromSnapshot(own));
    await own.down();
  }
  console.log(`${services} services, ${services * endpoints} endpoints, ${rounds} rounds; ms from exec:`);
  const row = (name: string, starts: Start[]) => {
    const moments = (["adopted", "answering", "inSync"] as const).flatMap((moment) => {
      const values = starts.map((each) => each[moment]);
      return [median(values), Math.max(...values)];
    });
    const inSync = starts.map((each) => each.inSync);
    const rest = (["cpu", "writes"] as const).map((each) => median(starts.map((one) => one[each])));
    return [name, ...moments, pairedRatio(inSync, nulls), ...rest];
  };
  printTable(
    ["", "adopted", "worst", "answering", "worst", "in sync", "worst", "x null client", "cpu", "map writes"],
    [
      row("killed and started: adopts what is pinned", again),
      ["limit", LIMITS.adopted, "", "", "", LIMITS.inSync, "", "", "", LIMITS.writes],
      row("nothing pinned: builds empty tables", empty),
    ],
  );
  const worst = Math.max(...again.map(({ writes }) => writes));
  console.log(
    `\nThe null client has received and acknowledged everything ${figure(median(nulls))} ms after connecting. ` +
      `Most map writes of a restart: ${worst}.\n` +
      `After a reboot the snapshot governs ${figure(median(rebooted))} ms after exec, ` +
      `${figure(Math.max(...rebooted))} at worst; the limit is ${LIMITS.reboot}.`,
  );
}
