/**
 * What an hour of history of 500 busy edges costs the agent in memory:
 *
 *     bun bench/history.ts [--rounds N] [--minutes N]
 *
 * First the history alone: a process records 360 steps of 500 edges (or of none) and writes the file after each minute, as
 * the agent does. Then two agents side by side for some minutes, one of them started with the file of such an hour. Memory is
 * what the processes hold (VmRSS) and held at most (VmHWM), and for agents what the kernel charged to their cgroup.
 */
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Counters, noCounters } from "../src/telemetry/counters/rows.ts";
import { HISTORY_SECONDS, History, STEP } from "../src/telemetry/history.ts";
import { writeHistory } from "../src/telemetry/history-file.ts";
import { MemoryCgroup } from "../test/lab/memory-cgroup.ts";
import { NetworkNamespace, removeCgroup } from "../test/lab/namespace.ts";
import { output, sleep } from "../test/lab/process.ts";
import { flagsOf } from "./lab/flags.ts";
import { BenchMesh, requireTools, runAndClean } from "./lab/machine.ts";
import { median, pairedDifference, printTable, progress } from "./lab/measure.ts";

const EDGES = 500;
const [role = "", count = "", file = ""] = process.argv.slice(2);
if (role === "record") {
  const history = record(Number(count), file);
  console.log(JSON.stringify(memoryOf("self")));
  // It is still held, or this would measure what is left after it.
  process.exit(history.tracks.size === Number(count) ? 0 : 1);
}

const flags = flagsOf({
  rounds: { type: "string", default: "5" },
  minutes: { type: "string", default: "3" },
});
requireTools(["ip", "iproute2"]);
const meshes: BenchMesh[] = [];
const namespaces: NetworkNamespace[] = [];
const cgroups: MemoryCgroup[] = [];
const saved = join(tmpdir(), `kmesh-history-${process.pid}`);
await runAndClean(measure, async () => {
  for (const mesh of meshes) await mesh.remove();
  for (const namespace of namespaces) await namespace.remove();
  for (const { path } of cgroups) await removeCgroup(path);
  await output(["rm", "-f", saved, `${saved}.none`]);
});

/** An hour of so many edges, each with traffic in every step, written to `path` after each minute. */
function record(edges: number, path: string): History {
  const history = new History();
  const totals = new Map<string, Counters>();
  const ids = Array.from(
    { length: edges },
    (_, i) =>
      `service:service-${i}.team-${i % 12}.svc.cluster.local:8080 -> endpoint:10.1.${i >> 8}.${i & 255}:8080`,
  );
  const first = Date.now() - HISTORY_SECONDS * 1000;
  for (let step = 0; step <= HISTORY_SECONDS / STEP; step++) {
    for (const [i, id] of ids.entries()) {
      const counters = noCounters();
      const made = (step + 1) * (i + 3);
      Object.assign(counters, {
        opened: made,
        sent: made * 900,
        received: made * 5_000,
        rttUs: made * 431,
        rtts: made,
      });
      counters.durationNs = made * 7e7;
      counters.ends[0] = made;
      totals.set(id, counters);
    }
    history.record(totals, first + step * STEP * 1000);
    if (step % 6 === 0) writeHistory(path, history);
  }
  Bun.gc(true);
  return history;
}

/** MB. */
function memoryOf(pid: number | "self"): { now: number; most: number } {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const of = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1]) / 1000;
  return { now: of("VmRSS"), most: of("VmHWM") };
}

async function measure(): Promise<void> {
  await historyAlone();
  await agents();
}

async function historyAlone(): Promise<void> {
  const rounds = Number(flags.rounds);
  const runs: Record<"none" | "full", { now: number; most: number }[]> = { none: [], full: [] };
  for (let round = 0; round < rounds; round++) {
    progress(`history alone, round ${round + 1} of ${rounds}`);
    for (const kind of round % 2 === 0 ? (["none", "full"] as const) : (["full", "none"] as const)) {
      const [edges, path] = kind === "full" ? [EDGES, saved] : [0, `${saved}.none`];
      const text = await output([process.execPath, import.meta.filename, "record", String(edges), path], {
        timeoutMs: 600_000,
      });
      runs[kind].push(JSON.parse(text));
    }
  }
  console.log(
    `An hour of ${EDGES} edges, ${rounds} rounds; the file has ${(statSync(saved).size / 1e6).toFixed(1)} MB:`,
  );
  printTable(
    ["history", "MB", "MB at most"],
    [
      ...(["none", "full"] as const).map((kind) => [
        kind,
        median(runs[kind].map(({ now }) => now)),
        median(runs[kind].map(({ most }) => most)),
      ]),
      [
        "more",
        pairedDifference(
          runs.full.map(({ now }) => now),
          runs.none.map(({ now }) => now),
        ),
        pairedDifference(
          runs.full.map(({ most }) => most),
          runs.none.map(({ most }) => most),
        ),
      ],
    ],
  );
}

async function agents(): Promise<void> {
  progress(`two agents for ${flags.minutes} minutes`);
  const started = await Promise.all(
    ["without history", "with history"].map(async (name, i) => {
      const namespace = await NetworkNamespace.create(`hist${i}`);
      namespaces.push(namespace);
      const mesh = new BenchMesh(namespace.path);
      meshes.push(mesh);
      const cgroup = MemoryCgroup.create();
      if (cgroup) cgroups.push(cgroup);
      await mesh.serve({ services: [] });
      mkdirSync(mesh.stateFolder, { recursive: true, mode: 0o700 });
      if (i === 1)
        writeFileSync(join(mesh.stateFolder, "traffic-history"), readFileSync(saved), { mode: 0o600 });
      await mesh.upIn(cgroup ? { cgroup: cgroup.path } : {}, "127.0.0.1:15010");
      return { name, mesh, cgroup };
    }),
  );
  await sleep(Number(flags.minutes) * 60_000);
  const rows = started.map(({ name, mesh, cgroup }) => {
    const { now, most } = memoryOf(mesh.agent.pid);
    return [name, now, most, cgroup?.processMemory() ?? Number.NaN] as const;
  });
  const [without, filled] = rows;
  if (!without || !filled) return;
  const more = (at: 1 | 2 | 3) => filled[at] - without[at];
  console.log(`An agent after ${flags.minutes} minutes, which wrote the file ${flags.minutes} times:`);
  printTable(
    ["agent", "MB", "MB at most", "MB in its cgroup"],
    [...rows, ["more", more(1), more(2), more(3)]],
  );
}
