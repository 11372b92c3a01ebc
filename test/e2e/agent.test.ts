import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Explained } from "../../src/admin/explain.ts";
import type { Inspection } from "../../src/datapath/inspect/state.ts";
import type { Mesh } from "../../src/mesh/model.ts";
import { eventually, type OwnedProcess, sleep } from "../lab/process.ts";
import { AgentLab, missing, SERVICE, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: the agent: ${why}`);

describe.skipIf(why !== undefined)("an agent's life", () => {
  let lab: AgentLab;
  let agent: OwnedProcess;

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 90, v2: 10 }));
    agent = await lab.liveAgent();
  }, 60_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  test("connections of enrolled apps are shared out exactly, and see the address that they asked for", async () => {
    const tally = await lab.connect(200);
    expect(tally.by).toEqual({ a: 90, b: 90, c: 20 });
    expect(tally.peers).toEqual({ [`${SERVICE} 80`]: 200 });
    expect(tally.errors).toEqual({});
  });

  test("who is not enrolled is not governed", async () => {
    expect((await lab.connect(3, {}, false)).errors).toEqual({ ENETUNREACH: 3 });
  });

  test("status shows the stream, the hooks and the service's connections", async () => {
    const status = await lab.status();
    expect(status).toMatchObject({
      alive: true,
      pid: agent.pid,
      adopted: false,
      stream: { connected: true, synced: true },
    });
    expect(status.kernel?.hooks.every((hook) => hook.attached)).toBe(true);
    const service = status.kernel?.services.find((each) => each.service === "shop.demo.svc.cluster.local:80");
    expect(service?.redirected).toBeGreaterThanOrEqual(200);
    const text = await lab.kmesh("status");
    expect(text.code).toBe(0);
    expect(text.stdout).toMatch(/shop\.demo\.svc\.cluster\.local:80\s+\d+/);
  });

  test("explain walks the live tables, for a host and for an address", async () => {
    for (const target of ["shop.demo.svc.cluster.local:80", "shop.demo", `${SERVICE}:80`]) {
      const [only, ...others] = (await lab.json<{ explanations: Explained[] }>("explain", target))
        .explanations;
      expect(others).toEqual([]);
      expect(only).toMatchObject({ verdict: "redirect", asked: { address: SERVICE, port: 80 } });
      const shares = only?.clusters.flatMap((cluster) =>
        cluster.endpoints.map((endpoint) => [
          endpoint.address,
          Math.round(endpoint.share * cluster.share * 1000) / 1000,
        ]),
      );
      expect(Object.fromEntries(shares ?? [])).toEqual({
        "127.1.0.1": 0.45,
        "127.1.0.2": 0.45,
        "127.1.0.3": 0.1,
      });
    }
    expect(
      (await lab.json<{ explanations: Explained[] }>("explain", "192.0.2.1:80")).explanations,
    ).toMatchObject([{ verdict: "pass" }]);
    expect((await lab.kmesh("explain", "nothing.invalid")).code).toBe(2);
  });

  test("dump: as received, the model, the tables", async () => {
    const received = JSON.stringify(await lab.json("dump", "received"));
    expect(received).toContain("shop.demo.svc.cluster.local");
    const model = await lab.json<Record<keyof Mesh, Record<string, unknown>>>("dump", "model");
    expect(Object.keys(model.frontends)).toContain(`tcp ${SERVICE}:80`);
    const tables = await lab.json<Inspection>("dump", "tables");
    expect(tables.frontends.map(({ match }) => match)).toContain(`${SERVICE}:80`);
    expect((await lab.kmesh("dump", "tables")).stdout).toContain(`match: ${SERVICE}:80`);
  });

  test("a second agent on the same folders is refused, with the pid of the first", async () => {
    const second = lab.startAgent();
    expect(await second.exited).toBe(5);
    expect(second.output()).toContain(`an agent runs already: pid ${agent.pid}`);
    const other = lab.startAgent(`--run-dir=${lab.folder}/run2`, `--state-dir=${lab.folder}/state2`);
    expect(await other.exited).toBe(5);
    expect(other.output()).toContain(`it holds ${lab.bpffs}`);
    expect((await lab.connect(10)).made).toBe(10);
  });

  test("down asks first, and without a terminal does nothing", async () => {
    const result = await lab.kmesh("down");
    expect(result.code).toBe(2);
    expect(result.stderr).toContain("--yes");
    expect((await lab.connect(10)).made).toBe(10);
  });

  test("killed with SIGKILL: traffic, status, explain and tables go on; the next one takes over without a write", async () => {
    const storm = await lab.client("storm", { threads: 2 });
    const hold = await lab.client("hold", { count: 5 });
    await agent.stop("SIGKILL");

    const dead = await lab.kmesh("status", "--output=json");
    expect(dead.code).toBe(3);
    expect(JSON.parse(dead.stdout)).toMatchObject({
      alive: false,
      pid: agent.pid,
      mesh: { services: expect.any(Number) },
    });
    expect((await lab.kmesh("status")).stdout).toContain(`The last one (pid ${agent.pid})`);
    const explained = await lab.kmesh("explain", "shop.demo:80");
    expect(explained.stdout).toContain("127.1.0.3:8080");
    expect(explained.stderr).toContain("No agent runs");
    expect((await lab.kmesh("dump", "tables")).stdout).toContain(`${SERVICE}:80`);
    expect((await lab.kmesh("dump", "received")).code).toBe(3);
    expect((await lab.connect(100)).made).toBe(100);

    agent = await lab.liveAgent();
    const status = await lab.status();
    expect(status).toMatchObject({ adopted: true, tables: { firstWrites: 0, writes: 0 } });
    const [made, held] = await Promise.all([storm.end(), hold.end()]);
    expect(made.made).toBeGreaterThan(100);
    expect(made.errors).toEqual({});
    expect(held).toMatchObject({ cut: 0, errors: {} });
  }, 30_000);

  test("what changed while no agent ran is written by difference", async () => {
    await agent.stop("SIGKILL");
    lab.configure(shop({ v1: 50, v2: 50 }));
    // The control plane looks at its file now and then.
    await sleep(500);
    agent = await lab.liveAgent();
    const { tables } = await lab.status();
    expect(tables?.firstWrites).toBeGreaterThan(0);
    expect(tables?.firstWrites).toBeLessThan(10);
    expect((await lab.connect(100)).by).toEqual({ a: 25, b: 25, c: 50 });
  }, 30_000);

  test("SIGTERM: the agent goes, what is pinned stays", async () => {
    expect(await agent.stop("SIGTERM")).toBe(0);
    expect(agent.output()).toContain("what the kernel holds stays");
    expect(existsSync(join(lab.folder, "run/admin.sock"))).toBe(false);
    expect((await lab.connect(100)).made).toBe(100);
  });

  test("istiod is not there at the start: the tables are unchanged, and status says what is wrong", async () => {
    agent = lab.startAgent("--istiod=127.0.0.1:1");
    const status = await lab.statusOnce(
      "istiod is missed",
      agent,
      (each) => each.alive && each.stream?.lastError !== undefined,
    );
    expect(status).toMatchObject({
      adopted: true,
      stream: { connected: false, synced: false },
      tables: { applies: 0, writes: 0 },
    });
    expect(status.stream?.lastError?.text).toContain("nothing listens at 127.0.0.1:1");
    expect(status.mesh?.current).toBe(false);
    expect(status.mesh?.services).toBeGreaterThan(0);
    expect((await lab.connect(100)).by).toEqual({ a: 25, b: 25, c: 50 });
    await agent.stop();
  }, 30_000);

  test("shadow mode decides and counts, and changes nothing", async () => {
    await agent.stop();
    agent = await lab.liveAgent("--shadow");
    const before = await wouldRedirect(lab);
    expect((await lab.connect(20)).errors).toEqual({ ENETUNREACH: 20 });
    expect((await wouldRedirect(lab)) - before).toBe(20);
    expect((await lab.kmesh("status")).stdout).toContain("Shadow mode");
    await agent.stop();
    agent = await lab.liveAgent();
    expect((await lab.connect(20)).made).toBe(20);
  }, 30_000);

  test("an excluded address is left alone", async () => {
    await agent.stop();
    agent = await lab.liveAgent(`--exclude=${SERVICE}/32:80`);
    expect((await lab.connect(5)).errors).toEqual({ ENETUNREACH: 5 });
    await agent.stop();
    agent = await lab.liveAgent();
    expect((await lab.connect(5)).made).toBe(5);
  }, 30_000);

  test("down stops the agent and removes all of it", async () => {
    const result = await lab.kmesh("down", "--yes");
    expect(result).toMatchObject({ code: 0, stderr: "" });
    expect(await eventually("the agent ends", () => agent.status !== undefined)).toBe(true);
    expect(agent.status).toBe(0);
    expect(existsSync(lab.bpffs)).toBe(false);
    expect((await lab.connect(5)).errors).toEqual({ ENETUNREACH: 5 });
    expect((await lab.status()).kernel).toBeNull();
  }, 30_000);
});

async function wouldRedirect(lab: AgentLab): Promise<number> {
  const { kernel } = await lab.status();
  return kernel?.services.find(({ service }) => service.startsWith("shop."))?.wouldRedirect ?? 0;
}
