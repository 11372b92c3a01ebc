/** Names outlive the agent: a resolver asks all the time while agents come, go, change their version and die. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { copyFileSync, existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Proof } from "../../src/handover/predecessor.ts";
import type { NamesStatus } from "../../src/names/status.ts";
import { AgentLab, KMESH, missing, SERVICE, shop, UPSTREAMS } from "../e2e/agent-lab.ts";
import { RunningClient } from "../interop/mesh-lab.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { OTHER_VERSION, otherBuild } from "../lab/other-build.ts";
import { eventually, placed, sleep } from "../lab/process.ts";

const why = missing();
if (why) console.warn(`skipped: survival of names: ${why}`);

setDefaultTimeout(60_000);

const HOST = "shop.demo.svc.cluster.local";
const DUAL = "dual.demo.internal";
/** Longer than what an entry holds inline in either layout. */
const LONG = "a-name-that-is-longer-than-what-an-entry-has-room-for.demo.internal";
const SERVER = { v4: "10.77.0.2", v6: "fd77::2" };
const QUERIES = [
  `${HOST}:A=${SERVICE}`,
  `${DUAL}:AAAA=fd96::20`,
  `${DUAL}:MX=`,
  `${LONG}:A=10.96.0.30`,
  `10.0.96.10.in-addr.arpa:PTR=${HOST}`,
];

interface Asked {
  asked: number;
  right: number;
  /** What came instead, and how often. */
  wrong: Record<string, number>;
}

describe.skipIf(why !== undefined)("mesh names survive", () => {
  let lab: AgentLab;
  let beyond: NetworkNamespace;
  let installed: string;
  let wide: string;

  const names = async (): Promise<NamesStatus | undefined> => (await lab.toldStatus()).names;
  const filled = () => eventually("names are live", async () => ((await names())?.entries ?? 0) > 5);
  /** One layout's folder is left when a version has come in. */
  const layouts = () =>
    readdirSync(join(lab.bpffs, "names")).filter((name) => name !== "links" && name !== "counts");
  const resolver = (queries: readonly string[]): RunningClient => {
    const script = join(import.meta.dirname, "resolver.py");
    const servers = ["127.0.0.1", "::1", SERVER.v4, SERVER.v6];
    return new RunningClient(
      placed(["/usr/bin/python3", script, "45", ...servers, "--", ...queries], {
        netns: lab.namespace.path,
        cgroup: lab.apps,
      }),
    );
  };
  /** Runs `body` while a resolver asks: each answer is right. Gives how many there were. */
  const answered = async (body: () => Promise<void>, queries: readonly string[] = QUERIES) => {
    const running = resolver(queries);
    try {
      expect(await running.line()).toBe("asking");
      await body();
      await running.close();
      const tally: Asked = JSON.parse(await running.line());
      expect(tally.wrong).toEqual({});
      expect(tally.right).toBe(tally.asked);
      expect(tally.asked).toBeGreaterThan(2 * queries.length);
      return tally.asked;
    } finally {
      running.kill();
    }
  };

  beforeAll(async () => {
    wide = await otherBuild("wide-layout");
    const mesh = shop({ v1: 50, v2: 50 });
    const endpoints = [{ address: UPSTREAMS.a, port: 8080 }];
    lab = await AgentLab.create({
      services: [
        ...mesh.services,
        { host: DUAL, addresses: ["10.96.0.20", "fd96::20"], port: 80, endpoints },
        { host: LONG, addresses: ["10.96.0.30"], port: 80, endpoints },
      ],
    });
    installed = join(lab.folder, "kmesh");
    copyFileSync(KMESH, installed);
    lab.program = [installed];
    beyond = await NetworkNamespace.create("far");
    await lab.namespace.connect(
      beyond,
      ["10.77.0.1/24", "fd77::1/64"],
      [`${SERVER.v4}/24`, `${SERVER.v6}/64`],
    );
    await lab.liveAgent();
    await filled();
  }, 150_000);
  afterAll(async () => {
    await beyond?.remove();
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  test("the resolver of this test tells a wrong answer, and none", async () => {
    const running = resolver([`${HOST}:A=10.96.0.99`, `nobody.demo.internal:A=10.96.0.98`]);
    expect(await running.line()).toBe("asking");
    await running.close();
    const { asked, right, wrong }: Asked = JSON.parse(await running.line());
    expect([asked > 0, right]).toEqual([true, 0]);
    expect(Object.keys(wrong)).toContain(`${HOST} A at 127.0.0.1: ${SERVICE}`);
    expect(Object.keys(wrong)).toContain("nobody.demo.internal A at 127.0.0.1: ConnectionRefusedError");
  });

  test("restart --graceful", async () => {
    await answered(async () => {
      const proof = await lab.json<Proof>("restart", "--graceful");
      expect(proof).toMatchObject({ failed: 0, refused: 0, map_writes: 0 });
      await filled();
      expect((await names())?.writes).toBe(0);
    });
  });

  test("SIGKILL, a time without an agent, and a start that writes nothing", async () => {
    await answered(async () => {
      process.kill(await lab.agentPid(), "SIGKILL");
      await sleep(300);
      await lab.liveAgent();
      await filled();
      expect((await names())?.writes).toBe(0);
    });
  });

  test("an upgrade to another layout, the way back, and both again", async () => {
    const before = layouts();
    expect(before).toHaveLength(1);
    await answered(async () => {
      const up = await lab.json<Proof>("upgrade", wide);
      expect(up).toMatchObject({ failed: 0, refused: 0, to_version: OTHER_VERSION["wide-layout"] });
      await eventually("the other layout's table is alone", () => {
        const now = layouts();
        return now.length === 1 && now[0] !== before[0];
      });
      expect((await lab.kmesh("resolve", LONG)).stdout).toContain("10.96.0.30");
      expect(await lab.json<Proof>("rollback")).toMatchObject({ failed: 0, refused: 0 });
      await eventually("the first layout's table is alone", () => layouts().join() === before.join());
      // Killed in the middle of another layout's start.
      lab.program = [wide];
      process.kill(await lab.agentPid(), "SIGKILL");
      const killed = lab.startAgent();
      // The moment with both tables is short: later than that will do.
      const begun = () => layouts().join() !== before.join();
      await eventually("it has begun with its table", begun, 10_000, 1);
      await killed.stop("SIGKILL");
      lab.program = [installed];
      await lab.liveAgent();
      await eventually("what was left is removed", () => layouts().join() === before.join());
    });
  });

  test("an upgrade that fails leaves the names as they were", async () => {
    const before = layouts();
    const bad = await otherBuild("bad-probe");
    await answered(async () => {
      expect((await lab.kmesh("upgrade", bad)).code).not.toBe(0);
      await filled();
      await eventually("its table is removed", () => layouts().join() === before.join());
    });
    expect((await names())?.trouble).toBeUndefined();
  });

  test("a version that knows no names has them detached, and the way back answers again", async () => {
    const { stdout, stderr, code } = await lab.kmesh("upgrade", await otherBuild("no-names"));
    expect([code, stderr.includes("knows no mesh names: their programs are detached")]).toEqual([0, true]);
    expect(stdout).toContain("0.0.9-test");
    expect(existsSync(join(lab.bpffs, "names"))).toBe(false);
    const running = resolver([`${HOST}:A=${SERVICE}`]);
    expect(await running.line()).toBe("asking");
    await running.close();
    const { right, wrong }: Asked = JSON.parse(await running.line());
    expect([right, Object.keys(wrong)]).toEqual([
      0,
      ["127.0.0.1", "::1", SERVER.v4, SERVER.v6].map((one) => `${HOST} A at ${one}: ConnectionRefusedError`),
    ]);
    expect((await lab.connect(20)).made).toBe(20);
    expect(await lab.json<Proof>("rollback")).toMatchObject({ failed: 0, refused: 0 });
    await filled();
    await answered(async () => {});
  });

  test("a reboot without istiod: from the snapshot, and istiod's push writes nothing", async () => {
    await eventually("a snapshot is written", () => existsSync(join(lab.folder, "state/snapshot")));
    await lab.stopControlPlane();
    process.kill(await lab.agentPid(), "SIGKILL");
    for (const folder of [lab.bpffs, join(lab.folder, "run")])
      rmSync(folder, { recursive: true, force: true });
    const agent = lab.startAgent();
    await lab.statusOnce("names are live from the snapshot", agent, (each) => (each.names?.entries ?? 0) > 5);
    const { tables, mesh } = await lab.toldStatus();
    expect({ applies: tables?.applies, current: mesh?.current }).toEqual({ applies: 0, current: false });
    await answered(async () => {
      const writes = (await names())?.writes;
      expect(writes).toBeGreaterThan(0);
      await lab.startControlPlane();
      await lab.statusOnce("istiod's push is live", agent, (each) => (each.tables?.applies ?? 0) > 0);
      await sleep(200);
      expect((await names())?.writes).toBe(writes ?? -1);
    });
  });
});
