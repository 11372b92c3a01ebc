/** The last good snapshot: what governs after a reboot while istiod is away. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { OwnedProcess } from "../lab/process.ts";
import { eventually } from "../lab/process.ts";
import { AgentLab, missing, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: the snapshot: ${why}`);

const SPREAD = { a: 90, b: 90, c: 20 };

describe.skipIf(why !== undefined)("after a reboot without istiod", () => {
  let lab: AgentLab;
  let agent: OwnedProcess;
  let file: string;

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 90, v2: 10 }));
    file = join(lab.folder, "state/snapshot");
    agent = await lab.liveAgent();
  }, 60_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  /** What is left of kmesh after one: neither pins nor what lies in /run. */
  async function reboot(): Promise<void> {
    await agent.stop("SIGKILL");
    for (const folder of [lab.bpffs, join(lab.folder, "run")])
      rmSync(folder, { recursive: true, force: true });
    expect((await lab.connect(3)).errors).toEqual({ ENETUNREACH: 3 });
  }

  /** Starts an agent and gives how long it took until it governs, milliseconds. */
  async function restored(): Promise<number> {
    const start = performance.now();
    agent = lab.startAgent();
    await eventually(
      "the snapshot is live",
      () => {
        if (agent.status !== undefined) throw new Error(agent.tail());
        return agent.output().includes("services are live from the snapshot");
      },
      5_000,
    );
    return performance.now() - start;
  }

  test("soon after the first push there is a file that only root may read, and nothing beside it", async () => {
    await eventually("it is written", () => existsSync(file));
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(existsSync(`${file}.new`)).toBe(false);
    expect((await lab.status()).snapshot).toBeUndefined();
  });

  test("a new agent governs from it without a word from istiod, and status says so", async () => {
    await lab.stopControlPlane();
    await reboot();
    // A second on a machine that has nothing else to do: bench/restart.ts.
    expect(await restored()).toBeLessThan(5_000);
    expect((await lab.connect(200)).by).toEqual(SPREAD);
    const status = await lab.status();
    expect(status).toMatchObject({
      adopted: false,
      tables: { applies: 0 },
      stream: { synced: false },
      mesh: { current: false, services: expect.any(Number) },
    });
    expect(status.snapshot?.writes).toBeGreaterThan(0);
    expect(Date.now() - Date.parse(status.snapshot?.writtenAt ?? "")).toBeLessThan(60_000);
    expect(status.kernel?.hooks.every((hook) => hook.attached)).toBe(true);
    const { stdout } = await lab.kmesh("status");
    expect(stdout).toMatch(/snapshot +governs until istiod's first push; written [\d.]+ m?s ago/);
    expect(JSON.stringify(await lab.json("dump", "model"))).toContain("shop.demo.svc.cluster.local");
    expect((await lab.kmesh("explain", "shop.demo:80")).stdout).toContain("127.1.0.3:8080");
  }, 30_000);

  test("an agent that takes over its tables still says where they come from", async () => {
    await agent.stop("SIGKILL");
    agent = lab.startAgent();
    const status = await lab.statusOnce("it lives", agent, (each) => each.pid === agent.pid && each.alive);
    expect(status).toMatchObject({ adopted: true, mesh: { current: false } });
    expect(status.snapshot).toBeDefined();
    expect(agent.output()).not.toContain("live from the snapshot");
    expect((await lab.connect(200)).by).toEqual(SPREAD);
  }, 30_000);

  test("an earlier start ended before its hooks were attached: it is made good", async () => {
    await agent.stop("SIGKILL");
    rmSync(join(lab.bpffs, "links"), { recursive: true });
    await restored();
    const status = await lab.status();
    expect(status).toMatchObject({ adopted: true, snapshot: { writes: 0 } });
    expect(status.kernel?.hooks.every((hook) => hook.attached)).toBe(true);
    expect((await lab.connect(200)).by).toEqual(SPREAD);
  }, 30_000);

  test("istiod is back: nothing is written when nothing changed, and the snapshot is not mentioned any more", async () => {
    await reboot();
    await restored();
    const storm = await lab.client("storm", { threads: 2 });
    await lab.startControlPlane();
    const status = await lab.statusOnce("istiod's push is live", agent, (each) => each.tables?.applies === 1);
    expect(status).toMatchObject({ tables: { firstWrites: 0 }, mesh: { current: true } });
    expect(status.snapshot).toBeUndefined();
    expect((await storm.end()).errors).toEqual({});
    expect((await lab.connect(200)).by).toEqual(SPREAD);
  }, 60_000);

  test("what changed and what vanished meanwhile is written by difference", async () => {
    await lab.stopControlPlane();
    await reboot();
    await restored();
    const [one] = shop({ v1: 90, v2: 10 }).services;
    if (!one) throw new Error("no service");
    lab.configure({ services: [{ ...one, endpoints: one.endpoints.slice(0, 1), split: { v1: 1 } }] });
    await lab.startControlPlane();
    const { tables } = await lab.statusOnce("the push is live", agent, (each) => each.tables?.applies === 1);
    expect(tables?.firstWrites).toBeGreaterThan(0);
    expect(tables?.firstWrites).toBeLessThan(20);
    expect((await lab.connect(20)).by).toEqual({ a: 20 });
    await eventually(
      "what vanished is gone from the tables",
      async () => !JSON.stringify(await lab.json("dump", "tables")).includes("127.1.0.3"),
    );
  }, 60_000);

  test("SIGTERM right after a change: the snapshot has it", async () => {
    lab.configure(shop({ v1: 50, v2: 50 }));
    await lab.statusOnce("the change is live", agent, (each) => (each.tables?.applies ?? 0) > 1);
    await agent.stop("SIGTERM");
    await lab.stopControlPlane();
    await reboot();
    await restored();
    expect((await lab.connect(100)).by).toEqual({ a: 25, b: 25, c: 50 });
  }, 60_000);

  test("without an agent, dump model shows it", async () => {
    await reboot();
    const { code, stdout, stderr } = await lab.kmesh("dump", "model");
    expect(code).toBe(0);
    expect(stdout).toContain("shop.demo.svc.cluster.local");
    expect(stderr).toContain("last good snapshot");
  });

  test("one that is damaged is set aside with a word, and nothing of it is used", async () => {
    const bytes = readFileSync(file);
    const middle = bytes.length >> 1;
    bytes[middle] = (bytes[middle] ?? 0) ^ 1;
    writeFileSync(file, bytes);
    agent = lab.startAgent();
    await lab.statusOnce("it lives", agent, (each) => each.pid === agent.pid && each.alive);
    expect(agent.output().match(/The snapshot .*\n/g)).toEqual([
      `The snapshot ${file} is not used: its checksum is wrong. It lies in ${file}.bad now; nothing is governed until istiod answers\n`,
    ]);
    expect(readFileSync(`${file}.bad`)).toEqual(bytes);
    expect((await lab.connect(3)).errors).toEqual({ ENETUNREACH: 3 });
    expect((await lab.status()).snapshot).toBeUndefined();
    await lab.startControlPlane();
    await lab.statusOnce("the push is live", agent, (each) => (each.tables?.applies ?? 0) > 0);
    expect((await lab.connect(100)).by).toEqual({ a: 25, b: 25, c: 50 });
    await eventually("a new one is written", () => existsSync(file));
  }, 60_000);

  test("down removes it, and then nothing comes back", async () => {
    const result = await lab.json<{ snapshot: boolean }>("down", "--yes");
    expect(result.snapshot).toBe(true);
    for (const path of [file, `${file}.new`, `${file}.bad`]) expect(existsSync(path)).toBe(false);
    await lab.stopControlPlane();
    agent = lab.startAgent();
    await lab.statusOnce("it lives", agent, (each) => each.pid === agent.pid && each.alive);
    expect((await lab.connect(3)).errors).toEqual({ ENETUNREACH: 3 });
    await agent.stop();
  }, 30_000);
});
