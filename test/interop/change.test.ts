/** What connections see while the configuration, istiod and the agent come and go. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync } from "node:fs";
import { eventually, sleep } from "../lab/process.ts";
import { MeshLab, missing } from "./mesh-lab.ts";
import { destinationRule, hostOf, serviceEntry, shares, virtualService } from "./objects.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

describe.skipIf(why !== undefined)("changes under a real istiod", () => {
  let lab: MeshLab;
  const ports = [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8080 }];
  const endpoint = { a: "172.31.1.1", b: "172.31.1.2", c: "172.31.1.3" };
  const subsets = (...names: string[]) => ({
    trafficPolicy: { loadBalancer: { simple: "ROUND_ROBIN" } },
    subsets: names.map((name) => ({ name, labels: { version: name.slice(0, 2) } })),
  });
  const live = (...names: (keyof typeof endpoint)[]) =>
    serviceEntry("live", {
      addresses: ["10.97.1.1"],
      ports,
      endpoints: names.map((name) => ({ address: endpoint[name] })),
    });
  const split = (weights: Record<string, number>) =>
    virtualService("split", hostOf("split"), { tcp: [{ route: shares(hostOf("split"), weights) }] });
  const splitEntry = serviceEntry("split", {
    addresses: ["10.97.1.2"],
    ports,
    endpoints: [
      { address: endpoint.a, labels: { version: "v1" } },
      { address: endpoint.b, labels: { version: "v2" } },
    ],
  });

  beforeAll(async () => {
    lab = await MeshLab.create();
    await lab.serve({ a: "172.31.1.1:8080", b: "172.31.1.2:8080", c: "172.31.1.3:8080" });
    await lab.plane.kube.apply(
      live("a", "b"),
      destinationRule("live", hostOf("live"), subsets()),
      splitEntry,
      destinationRule("split", hostOf("split"), subsets("v1", "v2")),
      split({ v1: 90, v2: 10 }),
    );
    await lab.startedAgent();
    await lab.connectUntil("the objects arrived", "10.97.1.2", 7000, ({ made }) => made === 1);
  }, 600_000);

  afterAll(async () => {
    await lab?.remove();
  }, 60_000);

  const at = (port: number) => ({ address: port === 1 ? "10.97.1.1" : "10.97.1.2", port: 7000 });

  test("endpoints change under new and held connections: none fails, none is cut", async () => {
    const storm = await lab.startClient("storm", at(1));
    const held = await lab.startClient("hold", { ...at(1), count: 20 });
    await lab.plane.kube.apply(live("a", "b", "c"));
    await lab.connectUntil("c has joined", "10.97.1.1", 7000, ({ by }) => by.c !== undefined, { count: 3 });
    await lab.plane.kube.apply(live("c"));
    await lab.connectUntil("a and b have left", "10.97.1.1", 7000, ({ by }) => by.c === 12, { count: 12 });
    await lab.plane.kube.apply(live("a", "b"));
    await lab.connectUntil("c has left", "10.97.1.1", 7000, ({ by }) => by.a === 6 && by.b === 6, {
      count: 12,
    });
    const [fresh, kept] = [await storm.end(), await held.end()];
    expect(fresh.errors).toEqual({});
    expect(fresh.made).toBeGreaterThan(50);
    expect(Object.keys(fresh.peers)).toEqual(["10.97.1.1 7000"]);
    expect([kept.made, kept.cut, kept.errors]).toEqual([20, 0, {}]);
  });

  test("weights shift live, exactly, without a failure", async () => {
    const storm = await lab.startClient("storm", at(2));
    const before = await lab.connect("10.97.1.2", 7000, { count: 10 });
    expect(before.errors).toEqual({});
    await lab.plane.kube.apply(split({ v1: 50, v2: 50 }));
    // Other clients take turns too while the storm blows, so exactness is asked for when it is over.
    await lab.connectUntil("about half", "10.97.1.2", 7000, ({ by }) => (by.b ?? 0) > 70, { count: 200 });
    expect((await storm.end()).errors).toEqual({});
    const after = await lab.connect("10.97.1.2", 7000, { count: 1000 });
    expect(after.by).toEqual({ a: 500, b: 500 });
  });

  test("a subset is renamed in one go without a failure", async () => {
    await lab.plane.kube.apply(split({ v1: 100 }));
    await lab.connectUntil("all to v1", "10.97.1.2", 7000, ({ by }) => by.a === 50, { count: 50 });
    const storm = await lab.startClient("storm", at(2));
    // As a careful operator does it: the new subset, the route to it, then the old one goes.
    await lab.plane.kube.apply(destinationRule("split", hostOf("split"), subsets("v1", "v2", "v1-next")));
    await lab.plane.kube.apply(split({ "v1-next": 100 }));
    await lab.plane.kube.apply(destinationRule("split", hostOf("split"), subsets("v1-next", "v2")));
    await sleep(1_500);
    const { errors, by } = await storm.end();
    expect(errors).toEqual({});
    expect(Object.keys(by)).toEqual(["a"]);
    const explained = await lab.kmesh("explain", "10.97.1.2:7000");
    expect(explained.stdout).toContain("v1-next");
    await lab.plane.kube.apply(
      destinationRule("split", hostOf("split"), subsets("v1", "v2")),
      split({ v1: 50, v2: 50 }),
    );
    await lab.connectUntil("both again", "10.97.1.2", 7000, ({ by: seen }) => seen.b === 10, { count: 20 });
  });

  test("a service comes, goes and comes again", async () => {
    const extra = serviceEntry("extra", {
      addresses: ["10.97.1.3"],
      ports,
      endpoints: [{ address: endpoint.c }],
    });
    await lab.plane.kube.apply(extra);
    await lab.connectUntil("it is there", "10.97.1.3", 7000, ({ by }) => by.c === 1);
    const held = await lab.startClient("hold", { address: "10.97.1.3", port: 7000, count: 3 });
    await lab.plane.kube.remove(extra);
    await lab.connectUntil("it is gone", "10.97.1.3", 7000, ({ errors }) => errors.ENETUNREACH === 1);
    const kept = await held.end();
    expect([kept.made, kept.cut]).toEqual([3, 0]);
    await lab.plane.kube.apply(extra);
    await lab.connectUntil("it is back", "10.97.1.3", 7000, ({ by }) => by.c === 1);
    await lab.plane.kube.remove(extra);
    await lab.connectUntil("it is gone", "10.97.1.3", 7000, ({ errors }) => errors.ENETUNREACH === 1);
  });

  test("istiod restarts and sends all again: not one map write", async () => {
    const storm = await lab.startClient("storm", at(1));
    const before = await lab.status();
    await lab.plane.restartIstiod();
    // The reconnect's first push has come once the agent is connected again and quiet.
    await eventually("the agent is back at istiod", async () => {
      const { body } = await lab.plane.istiodHttp("/debug/syncz");
      return body.includes("vm") || body.includes("sidecar");
    });
    await sleep(2_000);
    const after = await lab.status();
    expect(after.tables.writes).toBe(before.tables.writes);
    expect(after.tables.applies).toBeGreaterThanOrEqual(before.tables.applies);
    expect((await storm.end()).errors).toEqual({});
  });

  test("istiod is away: connections go on, and what changed meanwhile comes when it is back", async () => {
    const storm = await lab.startClient("storm", at(1));
    await lab.plane.stopIstiod("SIGKILL");
    await lab.plane.kube.apply(live("c"));
    await sleep(2_000);
    expect((await lab.connect("10.97.1.1", 7000, { count: 10 })).by).not.toHaveProperty("c");
    await lab.plane.startIstiod();
    await lab.connectUntil("the change", "10.97.1.1", 7000, ({ by }) => by.c === 10, { count: 10 });
    await lab.plane.kube.apply(live("a", "b"));
    await lab.connectUntil("the change back", "10.97.1.1", 7000, ({ by }) => by.a === 5, { count: 10 });
    expect((await storm.end()).errors).toEqual({});
  });

  test("the agent is killed: connections go on; it reattaches and writes only what changed", async () => {
    const storm = await lab.startClient("storm", at(1));
    const held = await lab.startClient("hold", { ...at(1), count: 10 });
    expect(await lab.agent.stop("SIGKILL")).toBe("SIGKILL");
    await sleep(1_000);
    const orphaned = await lab.connect("10.97.1.1", 7000, { count: 20 });
    expect([orphaned.made, orphaned.errors]).toEqual([20, {}]);
    const dead = await lab.kmesh("status");
    expect(dead.stdout + dead.stderr).toMatch(/not running|dead|gone|no agent/i);
    expect((await lab.kmesh("explain", "10.97.1.1:7000")).stdout).toContain("172.31.1.1");

    const again = await lab.startedAgent();
    const status = await lab.status();
    expect([status.pid, status.adopted]).toEqual([again.pid, true]);
    expect(status.tables.writes).toBe(0);

    await lab.agent.stop("SIGKILL");
    await lab.plane.kube.apply(live("a", "b", "c"));
    await lab.startedAgent();
    await lab.connectUntil("the change", "10.97.1.1", 7000, ({ by }) => by.c === 4, { count: 12 });
    const changed = await lab.status();
    expect(changed.tables.writes).toBeGreaterThan(0);
    expect(changed.tables.writes).toBeLessThan(40);

    const [fresh, kept] = [await storm.end(), await held.end()];
    expect(fresh.errors).toEqual({});
    expect([kept.made, kept.cut, kept.errors]).toEqual([10, 0, {}]);
    await lab.plane.kube.apply(live("a", "b"));
  });

  test("the agent starts while istiod is away: nothing is touched", async () => {
    await lab.agent.stop("SIGKILL");
    await lab.plane.stopIstiod();
    const agent = lab.startAgent();
    await sleep(4_000);
    expect(agent.status).toBeUndefined();
    expect((await lab.connect("10.97.1.1", 7000, { count: 10 })).errors).toEqual({});
    await agent.stop("SIGTERM");
    expect((await lab.connect("10.97.1.1", 7000, { count: 10 })).errors).toEqual({});
    await lab.plane.startIstiod();
    await lab.startedAgent();
    expect((await lab.status()).tables.writes).toBeLessThan(40);
  });

  test("a second agent on the same folders is refused with the pid of the first", async () => {
    const { pid } = lab.agent;
    const second = await lab.kmesh(
      "run",
      `--istiod=127.0.0.1:${lab.plane.ports.grpc}`,
      "--plaintext",
      "--namespace=shop",
      "--ip=172.31.0.1",
      `--cgroup=${lab.apps}`,
    );
    expect(second.code).not.toBe(0);
    expect(second.stderr + second.stdout).toContain(String(pid));
  });

  test("down takes everything away, also with the agent dead", async () => {
    await lab.agent.stop("SIGKILL");
    expect((await lab.connect("10.97.1.1", 7000)).made).toBe(1);
    expect(await lab.kmesh("down", "--yes")).toMatchObject({ code: 0 });
    expect((await lab.connect("10.97.1.1", 7000)).errors).toEqual({ ENETUNREACH: 1 });
    expect(existsSync(lab.bpffs)).toBe(false);
  });
});
