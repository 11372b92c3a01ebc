/** Endpoints whose connects fail in a row get no connections for a while, and nothing is ever refused because of it. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { openPinned } from "../../src/datapath/inspect/inspect.ts";
import type { Tables } from "../../src/datapath/tables/tables.ts";
import { type Balance, type Cluster, type Ejection, emptyMesh } from "../../src/mesh/model.ts";
import { eventually } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint, locality } from "./mesh.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("ejection tests are skipped: they need root");

const LIVE = "172.31.1.1:8080";
const LIVE6 = "[fd00:31::1]:8080";
const RULE: Ejection = { after: 3, base: 60_000, longest: 300_000, percent: 50, enforcing: 100 };
let serial = 0;

describe.skipIf(!root)("ejection", () => {
  let lab: DatapathLab;
  let tables: Tables;
  let lastMesh = emptyMesh();
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({ live: LIVE, six: LIVE6 });
    lab.publish(emptyMesh());
    tables = openPinned(lab.bpffs);
  });
  afterAll(async () => {
    tables?.close();
    await lab?.remove();
  });

  /** Endpoints at which nobody listens, never the same twice. */
  const dead = (count: number, host = "172.31.1.1") =>
    Array.from({ length: count }, () => `${host}:${++serial}`);

  /** A service of its own over these endpoints; gives its address. */
  function serve(name: string, ends: readonly string[], more: Partial<Cluster> = {}): string {
    const mesh = emptyMesh();
    addCluster(
      mesh,
      name,
      ends.map((at) => endpoint(at)),
      more,
    );
    const address = ends.some((at) => at.startsWith("["))
      ? `[2001:2::9:${++serial}]:80`
      : `10.96.9.${++serial}:80`;
    addFrontend(mesh, address, { kind: "cluster", cluster: name });
    lab.publish(mesh);
    lastMesh = mesh;
    lab.datapath.keepCurrent();
    return address;
  }

  const ejected = (name: string) =>
    lab.datapath
      .inspect()
      .clusters.filter((cluster) => cluster.name === name)
      .flatMap(({ endpoints }) => endpoints.filter((each) => each.ejectedFor > 0));

  /** What the summary says of a cluster. */
  const told = (name: string) => {
    const { now = [], stale } = lab.datapath.summarize().ejections ?? {};
    return { stale, now: now.filter(({ cluster }) => cluster === name) };
  };

  const BALANCES: Balance[] = [
    { policy: "round-robin" },
    { policy: "random" },
    { policy: "least-request" },
    { policy: "maglev", tableSize: 1021 },
    { policy: "ring-hash", tableSize: 1024 },
  ];
  test.each(BALANCES.map((balance) => [balance.policy, balance] as const))(
    "%s: after three failures in a row no connection goes to an endpoint",
    async (policy, balance) => {
      const at = serve(policy, [LIVE, ...dead(3)], { balance, ejection: { ...RULE, percent: 75 } });
      const before = await lab.connect(at, { count: 60 });
      expect(before.errors.ECONNREFUSED ?? 0).toBeLessThanOrEqual(9);
      expect(before.made + (before.errors.ECONNREFUSED ?? 0)).toBe(60);
      expect(await lab.connect(at, { count: 60 })).toMatchObject({ made: 60, by: { live: 60 }, errors: {} });
    },
  );

  test("IPv6 alike", async () => {
    const at = serve("six", [LIVE6, ...dead(1, "[fd00:31::1]")], { ejection: RULE });
    expect((await lab.connect(at, { count: 20 })).errors).toEqual({ ECONNREFUSED: 3 });
    expect(await lab.connect(at, { count: 20 })).toMatchObject({ made: 20, by: { six: 20 }, errors: {} });
  });

  test("it is shown, with the failures, and gets connections again when the time is over", async () => {
    const [late = ""] = dead(1, "127.0.0.1");
    const at = serve("late", [LIVE, late], { ejection: { ...RULE, base: 1_500 } });
    expect((await lab.connect(at, { count: 20 })).errors).toEqual({ ECONNREFUSED: 3 });
    expect(ejected("late")).toMatchObject([{ address: "127.0.0.1", failed: 3, failures: 0, live: 0 }]);
    expect(told("late")).toMatchObject({ stale: false, now: [{ address: "127.0.0.1" }] });
    expect(
      lab.datapath.summarize().services.find(({ service }) => service === "svc:80")?.failed,
    ).toBeGreaterThan(2);
    await lab.serve({ late });
    expect((await lab.connect(at, { count: 4 })).by).toEqual({ live: 4 });
    await eventually("the time is over", () => ejected("late").length === 0);
    expect(await lab.connect(at, { count: 10 })).toMatchObject({ by: { live: 5, late: 5 }, errors: {} });
  });

  test("each in a row lasts longer", async () => {
    const at = serve("longer", [LIVE, ...dead(1)], { ejection: { ...RULE, after: 1, base: 1_000 } });
    expect((await lab.connect(at, { count: 4 })).errors).toEqual({ ECONNREFUSED: 1 });
    await eventually("the first is over", () => ejected("longer").length === 0);
    expect((await lab.connect(at, { count: 4 })).errors).toEqual({ ECONNREFUSED: 1 });
    expect(ejected("longer")[0]?.ejectedFor).toBeGreaterThan(1_000);
  });

  test.each(BALANCES.map((balance) => [balance.policy, balance] as const))(
    "%s: with a whole locality ejected connections go to the next priority, and come back",
    async (policy, balance) => {
      const [late = "", ...gone] = dead(2, "127.0.0.1");
      const [second = ""] = dead(1);
      const localities = [[late, ...gone], [second], [LIVE]].map((ends, priority) =>
        locality(
          ends.map((at) => endpoint(at)),
          { priority },
        ),
      );
      const name = `failover-${policy}`;
      const ejection = { ...RULE, base: 2_500, percent: 75 };
      const at = serve(name, [late], { balance, ejection, localities });
      const before = await lab.connect(at, { count: 40 });
      // Three failures an endpoint; all three dead ones of four may be ejected, which is 75 percent.
      expect(before.errors.ECONNREFUSED ?? 0).toBeLessThanOrEqual(9);
      expect(before.by).toEqual({ live: before.made });
      expect(await lab.connect(at, { count: 20 })).toMatchObject({ made: 20, by: { live: 20 }, errors: {} });
      expect(ejected(name).length).toBeGreaterThanOrEqual(1);
      await lab.serve({ [policy]: late });
      expect(lab.datapath.inspect().clusters.find((each) => each.name === name)?.fallbacks).toMatchObject([
        [{ port: Number(second.split(":")[1]) }],
        [{ address: "172.31.1.1", port: 8080 }],
      ]);
      // What an earlier start wrote is found again, with its fallbacks.
      lab.reopen();
      expect(lab.datapath.publish(lastMesh, { everything: true }).writes).toBe(0);
      lab.datapath.keepCurrent();
      await eventually("the time is over", () => ejected(name).length === 0);
      expect((await lab.connect(at, { count: 20 })).by[policy]).toBeGreaterThan(0);
    },
  );

  test("an enforcing percentage ejects after so many out of a hundred rows of failures", async () => {
    const rule = { ...RULE, after: 1, percent: 100 };
    let rows = 0;
    for (let i = 0; i < 12; i++) {
      const name = `enforcing-${i}`;
      const at = serve(name, [LIVE, ...dead(1)], { ejection: { ...rule, enforcing: 20 } });
      rows += (await lab.connect(at, { count: 40 })).errors.ECONNREFUSED ?? 0;
    }
    // Each failure is a row: five in the mean until one ejects, twenty where none does.
    expect(rows).toBeGreaterThan(12);
    expect(rows).toBeLessThan(12 * 12);
    const always = serve("always", [LIVE, ...dead(1)], { ejection: { ...rule, enforcing: 100 } });
    expect((await lab.connect(always, { count: 40 })).errors).toEqual({ ECONNREFUSED: 1 });
  });

  test("no more than the share, but one", async () => {
    const at = serve("share", [LIVE, ...dead(3)], { ejection: RULE });
    await lab.connect(at, { count: 60 });
    expect(ejected("share")).toHaveLength(2);
    const one = serve("one", [LIVE, ...dead(3)], { ejection: { ...RULE, percent: 10 } });
    await lab.connect(one, { count: 60 });
    expect(ejected("one")).toHaveLength(1);
  });

  test("a heavy endpoint's share goes to a light one", async () => {
    const [heavy = ""] = dead(1);
    const mesh = emptyMesh();
    const ends = [endpoint(heavy, { weight: 19 }), endpoint(LIVE)];
    addCluster(mesh, "heavy", ends, { ejection: { ...RULE, percent: 10 } });
    addFrontend(mesh, "10.96.10.1:80", { kind: "cluster", cluster: "heavy" });
    lab.publish(mesh);
    await lab.connect("10.96.10.1:80", { count: 10 });
    expect(await lab.connect("10.96.10.1:80", { count: 20 })).toMatchObject({ made: 20, errors: {} });
  });

  test("when all are, they are tried all the same", async () => {
    const at = serve("all", dead(2), { ejection: { ...RULE, percent: 100 } });
    expect((await lab.connect(at, { count: 20 })).errors).toEqual({ ECONNREFUSED: 20 });
    expect(ejected("all")).toHaveLength(2);
    const counters = () => lab.datapath.summarize().services.find(({ service }) => service === "svc:80");
    const before = counters();
    expect((await lab.connect(at, { count: 10 })).errors).toEqual({ ECONNREFUSED: 10 });
    expect(counters()).toMatchObject({
      redirected: (before?.redirected ?? 0) + 10,
      failed: (before?.failed ?? 0) + 10,
      refused: before?.refused ?? {},
    });
  });

  test("a cluster that shares the endpoint leaves it out after one failure of its own", async () => {
    const [bad = ""] = dead(1);
    const mesh = emptyMesh();
    for (const [name, at] of [
      ["one", "10.96.10.2:80"],
      ["two", "10.96.10.3:80"],
    ] as const) {
      addCluster(mesh, name, [endpoint(LIVE), endpoint(bad)], { ejection: RULE });
      addFrontend(mesh, at, { kind: "cluster", cluster: name });
    }
    lab.publish(mesh);
    expect((await lab.connect("10.96.10.2:80", { count: 20 })).errors).toEqual({ ECONNREFUSED: 3 });
    expect((await lab.connect("10.96.10.3:80", { count: 20 })).errors).toEqual({ ECONNREFUSED: 1 });
  });

  test("without outlier detection none is, but when nobody keeps the tables up to date", async () => {
    const at = serve("plain", [LIVE, ...dead(1)]);
    expect((await lab.connect(at, { count: 20 })).errors).toEqual({ ECONNREFUSED: 10 });
    expect(ejected("plain")).toEqual([]);
    // As ten seconds after the agent's end.
    tables.settings.set("current_ns", 1n);
    expect((await lab.connect(at, { count: 20 })).errors.ECONNREFUSED).toBeLessThanOrEqual(5);
    expect(await lab.connect(at, { count: 20 })).toMatchObject({ made: 20, by: { live: 20 }, errors: {} });
    expect(told("plain")).toMatchObject({ stale: true, now: [{ address: "172.31.1.1" }] });
    // And as when it is back.
    lab.datapath.keepCurrent();
    expect((await lab.connect(at, { count: 20 })).errors).toEqual({ ECONNREFUSED: 10 });
    expect(told("plain")).toMatchObject({ stale: false, now: [] });
  });
});
