import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DemoReport } from "../../src/demo/script.ts";
import { cgroup2Mount } from "../lab/namespace.ts";
import { eventually, OwnedProcess, run } from "../lab/process.ts";
import { KMESH, loaded, missing, programsOf } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: the demo: ${why}`);

describe.skipIf(why !== undefined)("kmesh demo", () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-demo-test-"));
  let demo: OwnedProcess | undefined;
  let serial = 0;

  const start = (...args: string[]) => {
    demo = new OwnedProcess({
      name: "demo",
      log: join(folder, `${serial++}.log`),
      command: [KMESH, "demo", ...args],
    });
    return demo;
  };
  const bpffs = (of: OwnedProcess) => `/sys/fs/bpf/kmesh-demo-${of.pid}`;
  const places = (of: OwnedProcess) => [
    bpffs(of),
    join(cgroup2Mount(), `kmesh-demo-${of.pid}`),
    `/run/kmesh-demo-${of.pid}`,
  ];
  /** The pids of the processes that it started. */
  const children = (of: OwnedProcess) =>
    readdirSync("/proc").filter((pid) => /^\d+$/.test(pid) && parentOf(pid) === of.pid);

  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  afterEach(async () => {
    await demo?.stop("SIGTERM", 10_000);
  }, 20_000);

  test("it keeps its promise, and leaves nothing behind", async () => {
    const run = start("--seconds=1", "--output=json");
    expect(await run.exited).toBe(0);
    const report: DemoReport & { left: string[] } = JSON.parse(run.output());
    expect(report).toMatchObject({
      ok: true,
      connections: { failed: 0 },
      longLived: { opened: 20, cut: 0 },
      wrongPeer: 0,
      names: { unresolved: 0 },
      restart: { adopted: true },
      left: [],
    });
    expect(report.connections.made).toBeGreaterThan(500);
    expect(report.restart.mapWrites).toBeGreaterThan(0);
    expect(report.steps.map((step) => step.agentAlive)).toEqual([true, true, false, false, true]);
    expect(places(run).filter((path) => existsSync(path))).toEqual([]);
  }, 60_000);

  test("as text it says what happens and ends with the figures", async () => {
    const run = start("--seconds=0.5");
    expect(await run.exited).toBe(0);
    for (const line of [
      "Killed the agent",
      "Started the agent again",
      "adopted the pinned tables",
      "-> shop:80",
      "No problems.",
      "As promised.",
    ])
      expect(run.output()).toContain(line);
    expect(run.output()).toMatch(/failed\s+0\n/);
    expect(run.output()).toMatch(/cut\s+0 of 20/);
  }, 60_000);

  test("Ctrl-C in the middle clears up", async () => {
    const run = start("--seconds=60");
    await eventually("the load runs", () => run.output().includes("The load runs"));
    const programs = await programsOf(bpffs(run));
    expect(programs.length).toBeGreaterThan(0);
    run.signal("SIGINT");
    expect(await run.exited).toBe(130);
    expect(places(run).filter((path) => existsSync(path))).toEqual([]);
    expect(await loaded(programs)).toEqual([]);
  }, 60_000);

  test("killed itself, it takes its processes with it, and the next demo clears up", async () => {
    const first = start("--seconds=60");
    await eventually("the load runs", () => first.output().includes("The load runs"));
    const family = children(first);
    expect(family.length).toBeGreaterThanOrEqual(6);
    await first.stop("SIGKILL");
    await eventually("its processes are gone", () => family.every((pid) => !existsSync(`/proc/${pid}`)));
    const second = start("--seconds=0.5");
    expect(await second.exited).toBe(0);
    expect([...places(first), ...places(second)].filter((path) => existsSync(path))).toEqual([]);
  }, 60_000);

  test("--keep stays up until it is ended, and the commands that it prints work", async () => {
    const kept = start("--seconds=0.5", "--keep");
    await eventually("it says how to play", () => kept.output().includes("It stays up"), 40_000);
    const config = /kmesh status --config (\S+)/.exec(kept.output())?.[1] ?? "";
    expect(config).toContain(`kmesh-demo-${kept.pid}`);
    expect((await run([KMESH, "status", "--config", config])).stdout).toContain("shop.demo.internal:80");
    const byName = `mount --bind $(dirname ${config})/resolv.conf $(readlink -f /etc/resolv.conf) && exec curl -s --max-time 5 http://shop.demo.internal`;
    const asked = await run(["unshare", "--mount", "sh", "-c", byName], {
      netns: `/proc/${kept.pid}/ns/net`,
      cgroup: join(cgroup2Mount(), `kmesh-demo-${kept.pid}`, "play"),
    });
    expect(asked.stdout).toMatch(/^[abc]\n$/);
    kept.signal("SIGINT");
    expect(await kept.exited).toBe(0);
    expect(places(kept).filter((path) => existsSync(path))).toEqual([]);
  }, 60_000);
});

function parentOf(pid: string): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
  } catch {
    return 0;
  }
}
