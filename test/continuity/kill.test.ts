/**
 * The real single file, killed with SIGKILL at every step that changes state, under connections: the next start puts it
 * right, and no connection notices. Which steps there are, src/runtime/fault.ts says.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { orderAgent } from "../../src/admin/client.ts";
import { adminSocket } from "../../src/admin/status.ts";
import type { Inspection } from "../../src/datapath/inspect/state.ts";
import type { DemoMesh } from "../../src/demo/services.ts";
import { reasonOf } from "../../src/errors/reason.ts";
import type { RestartRequest } from "../../src/handover/restart-request.ts";
import { cgroup2Root, ownCgroup } from "../../src/kernel/cgroup.ts";
import { FAULT_POINTS, FAULT_VARIABLE, type FaultPoint } from "../../src/runtime/fault.ts";
import { manifestFile } from "../../src/state/manifest.ts";
import { AgentLab, KMESH, missing, type RunningClient, type StatusJson, shop } from "../e2e/agent-lab.ts";
import { otherBuild } from "../lab/other-build.ts";
import { eventually, type OwnedProcess, PATIENCE, sleep } from "../lab/process.ts";

setDefaultTimeout(PATIENCE * 400_000);
const why = missing();
if (why) console.warn(`the kill test is skipped: ${why}`);

type Phase = "start" | "restart" | "graceful" | "upgrade" | "rollback" | "handed";

/**
 * In which phases the agent dies there; `:n` is the n-th time that it comes by. Where everything is slow (PATIENCE), as on
 * the kernels of test/kernels, it dies at each point once, in the first of its phases.
 */
const WALK: Record<FaultPoint, Partial<Record<Phase, string | readonly string[]>>> = {
  "pin.kept": { start: ":3" },
  "pin.table": { start: ":4", upgrade: ":4" },
  "pin.programs": { start: ":2" },
  "pin.filled": { start: "" },
  "pin.generation": { upgrade: "", handed: "" },
  "probe.cgroup": { upgrade: "" },
  "probe.connected": { upgrade: "" },
  "probe.removed": { upgrade: "" },
  "link.attached": { start: ":3" },
  "flip.hook": { start: ":3", upgrade: ":4", rollback: ":5", handed: [":3", ":5"] },
  "flip.hooks": { upgrade: "", rollback: "", handed: "" },
  "remove.other": { upgrade: "", rollback: "" },
  "remove.other.done": { upgrade: "", rollback: "" },
  "remove.programs": { start: "", upgrade: "", rollback: "" },
  "publish.descriptor": { start: ":2", upgrade: ":4" },
  "publish.cluster": { restart: ":5", rollback: ":5" },
  "publish.splits": { restart: "" },
  "publish.service": { restart: ":5" },
  "publish.target": { restart: ":20", upgrade: ":20", rollback: ":20" },
  "publish.exact": { restart: "" },
  "publish.growth": { restart: "" },
  "publish.frontends": { restart: "" },
  "publish.fallback": { restart: "" },
  "publish.removal": { restart: ":3", rollback: ":3" },
  "snapshot.part": { restart: "" },
  "snapshot.head": { start: "" },
  "snapshot.rename": { restart: "" },
  "history.rename": { restart: "" },
  // Of an upgrade: build, probe, fill, flip and removal of an older one; at some of them what came of it.
  "manifest.part": { start: ":1", restart: "", upgrade: ":4", rollback: ":2", handed: ":3" },
  "manifest.rename": {
    start: [":2", ":4"],
    restart: "",
    upgrade: [":1", ":3", ":5", ":6", ":7", ":8", ":9"],
    rollback: [":3", ":4", ":6"],
    handed: [":1", ":4"],
  },
  "manifest.renamed": { start: ":3", restart: "", upgrade: [":3", ":5"], rollback: ":4", handed: ":5" },
  // A hand-over.
  "predecessor.ready": { graceful: "" },
  "predecessor.flushed": { graceful: "" },
  "predecessor.paused": { graceful: "" },
  "predecessor.live": { graceful: "" },
  "predecessor.done": { graceful: "" },
  "predecessor.over": { graceful: "" },
  "successor.ready": { graceful: "" },
  "successor.yours": { graceful: "" },
  "successor.locks": { graceful: "" },
  "successor.written": { graceful: "" },
  "successor.live": { graceful: "" },
  "successor.served": { graceful: "" },
};

/** Where a successor dies before connections were governed by its tables: nothing of them stays. */
const UNDONE = new Set([
  "pin.generation",
  "flip.hook:3",
  "manifest.part:3",
  "manifest.rename:1",
  "manifest.rename:4",
]);

/** The service under test, its weights by `round`, among others that are not those of another round. */
function meshOf(round: number, addresses = 1): DemoMesh {
  const share = round % 2 === 0 ? 50 : 80;
  const { services } = shop({ v1: share, v2: 100 - share });
  const more = Array.from({ length: 40 }, (_, i) => ({
    host: `more-${round}-${i}.demo.svc.cluster.local`,
    addresses: Array.from({ length: addresses }, (_, j) => `10.${97 + j}.${round}.${i + 1}`),
    port: 80,
    endpoints: [{ address: `127.2.${round}.${i + 1}`, port: 8080 }],
  }));
  return { services: [...services, ...more] };
}

describe.skipIf(why !== undefined)("killed at every step", () => {
  let lab: AgentLab;
  let wide: string;
  const passed = new Map<FaultPoint, string[]>();
  let round = 0;
  let storm: RunningClient | undefined;

  beforeAll(async () => {
    wide = await otherBuild("wide-layout");
    lab = await AgentLab.create(meshOf(round));
  });
  afterAll(async () => {
    if (!lab) return;
    await end();
    expect(await lab.remove()).toEqual([]);
  });

  function stepsOf(phase: Phase): [FaultPoint, string][] {
    return FAULT_POINTS.flatMap((point) => {
      const times = [WALK[point][phase] ?? []].flat();
      const first = Object.keys(WALK[point])[0] === phase ? times.slice(0, 1) : [];
      return (PATIENCE > 1 ? first : times).map((time): [FaultPoint, string] => [point, time]);
    });
  }

  /** Starts an agent that is to die there. */
  function armed(point: FaultPoint, times = ""): OwnedProcess {
    lab.environment = { [FAULT_VARIABLE]: `${point}${times}` };
    const agent = lab.startAgent();
    lab.environment = {};
    return agent;
  }

  async function dies(agent: OwnedProcess): Promise<void> {
    const status = await Promise.race([agent.exited, sleep(PATIENCE * 25_000).then(() => "still there")]);
    if (status === "SIGKILL") return;
    const said = agent.tail(12);
    // The next step starts its own.
    await agent.stop("SIGKILL");
    throw new Error(`it did not die there (${status}):\n${said}`);
  }

  /** The agent of now, also one that is nobody's child, by the lab's own status; with SIGKILL. */
  async function end(): Promise<void> {
    const { alive, pid } = await lab.toldStatus();
    if (!alive || pid === undefined) return;
    process.kill(pid, "SIGKILL");
    await eventually("it is gone", () => isGone(pid));
  }

  function manifest(): string {
    return manifestFile(join(lab.folder, "state"));
  }

  /** New connections all the time; few where each takes long. */
  async function connections(): Promise<RunningClient> {
    storm = await lab.client("storm", PATIENCE > 1 ? { pace: 0.1, timeout: 5 * PATIENCE } : {});
    return storm;
  }

  async function anew(): Promise<void> {
    if (existsSync(lab.bpffs)) {
      await end();
      const { code, stderr } = await lab.kmesh("down", "--yes");
      if (code !== 0) throw new Error(stderr);
    }
  }

  async function counted(status?: StatusJson): Promise<number> {
    const { kernel } = status ?? (await lab.toldStatus());
    const shopOf = kernel?.services.find(({ service }) => service.startsWith("shop."));
    expect(shopOf?.failed ?? 0).toBe(0);
    return shopOf?.redirected ?? 0;
  }

  /** All is as it has to be after the recovery: nothing failed, every connection counted and ended, no leftovers. */
  async function proves(storm: RunningClient, before: number, generations = 1): Promise<void> {
    await sleep(50);
    const { made, errors, peers } = await storm.end();
    expect(errors).toEqual({});
    expect(Object.keys(peers)).toHaveLength(1);
    expect(made).toBeGreaterThan(0);
    const status = await lab.toldStatus();
    const { kernel, alive } = status;
    expect(alive).toBe(true);
    expect(kernel?.foreign).toBeUndefined();
    expect(kernel?.hooks.filter(({ attached }) => !attached)).toEqual([]);
    expect((await counted(status)) - before).toBe(made);
    // Every connection was counted and ended by the kernel: no agent had anything to put right.
    expect(lab.said("live counts corrected")).toEqual([]);
    const { clusters, frontends } = (await lab.told("/dump/tables")) as Inspection;
    expect(clusters.filter(({ live }) => live !== 0)).toEqual([]);
    // One mesh, no second: what the killed agent left half done is gone or finished.
    expect(frontends.filter(({ service }) => service?.startsWith("more-"))).toHaveLength(40);
    // Nobody needs a second generation but for the way back.
    const kept = readdirSync(join(lab.bpffs, "gen"));
    expect(kept.length).toBe(generations);
    const left = readdirSync(lab.bpffs, { recursive: true, encoding: "utf8" });
    expect(left.filter((path) => path.split("/").some((name) => name.endsWith("_new")))).toEqual([]);
    // What is written down agrees with what is pinned, and nothing is under way.
    const { live, kept: wayBack, step } = JSON.parse(readFileSync(manifest(), "utf8"));
    expect(step).toBeUndefined();
    expect([live.abi, ...(wayBack ? [wayBack.abi] : [])].sort()).toEqual(kept.sort());
    expect(existsSync(`${manifest()}.new`)).toBe(false);
  }

  /** Runs the phase's steps; what fails says at which. */
  async function walk(
    phase: Phase,
    step: (point: FaultPoint, times: string) => Promise<void>,
  ): Promise<void> {
    const failures: string[] = [];
    for (const [point, times] of stepsOf(phase)) {
      try {
        await step(point, times);
        passed.set(point, [...(passed.get(point) ?? []), `${phase}${times}`]);
      } catch (error) {
        // The next step counts its own.
        storm?.kill();
        failures.push(`${phase} at ${point}${times}: ${reasonOf(error)}`);
      }
    }
    expect(failures).toEqual([]);
  }

  test("a first start", async () => {
    await walk("start", async (point, times) => {
      lab.program = [KMESH];
      await anew();
      await dies(armed(point, times));
      await lab.liveAgent();
      await proves(await connections(), 0);
    });
  });

  test("a restart, with another mesh meanwhile", async () => {
    await anew();
    await lab.liveAgent();
    await walk("restart", async (point, times) => {
      const before = await counted();
      const storm = await connections();
      await end();
      round++;
      // All is as it was and nothing is to be written: but when it was lost.
      if (point.startsWith("manifest.")) rmSync(manifest());
      // More frontends than the first table holds.
      lab.configure(meshOf(round, point === "publish.growth" ? 20 : 1));
      await dies(armed(point, times));
      lab.configure(meshOf(round));
      await lab.liveAgent();
      await proves(storm, before);
    });
  });

  test("a hand-over, either side", async () => {
    if (!existsSync(lab.bpffs)) await lab.liveAgent();
    await walk("graceful", async (point) => {
      const before = await counted();
      const storm = await connections();
      await end();
      const agent = armed(point);
      await lab.statusOnce("it governs", agent, ({ pid, tables }) => pid === agent.pid && !!tables?.applies);
      const { code } = await lab.kmesh("restart", "--graceful");
      if (point.startsWith("predecessor.")) await dies(agent);
      else expect(code).toBe(6);
      const after = await eventually("an agent", async () => {
        const status = await lab.toldStatus();
        const is = point.startsWith("predecessor.") ? status.pid !== agent.pid : status.pid === agent.pid;
        return status.alive && is && status;
      });
      expect(after.stream?.connected).toBe(true);
      await proves(storm, before);
    });
  });

  /** Tables of a version before that of before, which are kept until the next flip. */
  function leaveOlder(): void {
    const abi = "0000000000000000";
    mkdirSync(join(lab.bpffs, "gen", abi));
    const kept = { abi, since: new Date().toISOString() };
    writeFileSync(manifest(), JSON.stringify({ ...JSON.parse(readFileSync(manifest(), "utf8")), kept }));
  }

  test("an upgrade to other tables, beside some that were kept before", async () => {
    await walk("upgrade", async (point, times) => {
      lab.program = [KMESH];
      await anew();
      await lab.liveAgent();
      leaveOlder();
      const storm = await connections();
      await end();
      lab.program = [wide];
      const agent = armed(point, times);
      await dies(agent);
      await lab.liveAgent();
      expect(existsSync(join(ownCgroup() ?? cgroup2Root(), `kmesh-probe-${agent.pid}`))).toBe(false);
      // The one before stays for the way back; one that is older does not.
      await proves(storm, 0, 2);
    });
  });

  test("a rollback to the tables that were kept, with another mesh meanwhile", async () => {
    await anew();
    lab.program = [KMESH];
    await lab.liveAgent();
    await walk("rollback", async (point, times) => {
      await end();
      lab.program = [wide];
      await lab.liveAgent();
      leaveOlder();
      const before = await counted();
      const storm = await connections();
      await end();
      round++;
      lab.configure(meshOf(round));
      lab.program = [KMESH];
      await dies(armed(point, times));
      await lab.liveAgent();
      await proves(storm, before, 2);
    });
  });

  test("a successor with other tables: the previous agent continues with its own", async () => {
    const successor = join(lab.folder, "successor");
    await walk("handed", async (point, times) => {
      lab.program = [KMESH];
      await anew();
      const agent = await lab.liveAgent();
      const storm = await connections();
      // The agent before must not die there, too, when it takes its hooks back.
      const script = `#!/bin/sh\n${FAULT_VARIABLE}=${point}${times} exec ${wide} "$@"\n`;
      writeFileSync(successor, script, { mode: 0o755 });
      const order: RestartRequest = {
        kind: "upgrade",
        graceful: true,
        executable: successor,
        timeout: 20_000,
        asked: Date.now(),
      };
      const heard: object[] = [];
      const hear = (line: unknown) => void heard.push(Object(line));
      await orderAgent(adminSocket(join(lab.folder, "run")), "/restart", order, hear, 30_000);
      expect(heard.at(-1)).toEqual({ failure: expect.stringContaining("the successor ended before") });
      await lab.statusOnce(
        "it goes on",
        agent,
        ({ pid, stream }) => pid === agent.pid && !!stream?.connected,
      );
      // What never governed is gone; what did for a moment is kept.
      await proves(storm, 0, UNDONE.has(`${point}${times}`) ? 1 : 2);
    });
  });

  test("no step was left out", () => {
    console.log([...passed].map(([point, phases]) => `killed at ${point}: ${phases.join(", ")}`).join("\n"));
    expect(FAULT_POINTS.filter((point) => !passed.has(point))).toEqual([]);
  });
});

/** Its last thread has ended: only then are its locks free. Nobody may have waited for it yet. */
function isGone(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const dead = stat.slice(stat.lastIndexOf(")") + 2).startsWith("Z");
    return dead && readdirSync(`/proc/${pid}/task`).length === 1;
  } catch {
    return true;
  }
}
