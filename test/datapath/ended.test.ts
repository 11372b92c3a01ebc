/** A connection that has ended does not count, though its socket is still open: maxConnections and least request see it. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { kernelRelease } from "../../src/kernel/features.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { RunningClient } from "../interop/mesh-lab.ts";
import { mapIteratorsRefused } from "../lab/map-iterators.ts";
import { eventually, PATIENCE, placed } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(PATIENCE * 30_000);
const why = mapIteratorsRefused();
if (why !== undefined) console.warn(`tests of ended connections are skipped: ${why}`);
const { major, minor } = kernelRelease();
const findsMptcp = major * 100 + minor >= 519;

const OPEN = "172.31.1.1:8080";
const OWN = "172.31.1.1:8082";

describe.skipIf(why !== undefined)("connections that have ended", () => {
  let lab: DatapathLab;
  beforeAll(async () => {
    // As the agent: the kernel is asked each second.
    lab = await DatapathLab.create({ upkeep: 60_000 });
    await lab.serve({ open: OPEN, other: "172.31.1.2:8080" });
    const mesh = emptyMesh();
    addCluster(mesh, "own", [endpoint(OWN)], { maxConnections: 2 });
    addFrontend(mesh, "10.96.5.1:80", { kind: "cluster", cluster: "own" });
    addCluster(mesh, "open", [endpoint(OPEN)], { maxConnections: 2 });
    addFrontend(mesh, "10.96.5.2:80", { kind: "cluster", cluster: "open" });
    lab.publish(mesh);
  });
  afterAll(async () => {
    await lab?.remove();
  });

  const cluster = (name: string) => lab.datapath.inspect().clusters.find((each) => each.name === name);
  const live = (name: string) => [cluster(name)?.live, cluster(name)?.endpoints[0]?.live];

  async function start(way: string, ...more: string[]): Promise<RunningClient> {
    const script = join(import.meta.dirname, "ended.py");
    const client = new RunningClient(
      placed(["/usr/bin/python3", script, way, "10.96.5.1", "80", OWN, ...more], {
        netns: lab.namespace.path,
        cgroup: lab.cgroup,
      }),
    );
    expect(await client.line()).toBe("ended");
    return client;
  }

  test.each([
    ["refused", ""],
    ["reset", ""],
    ["shutdown", ""],
    ["unspecified", ""],
    ...(findsMptcp ? [["refused", "mptcp"] as const, ["reset", "mptcp"] as const] : []),
  ])(
    "%s %s: it stops counting while its socket is open, and is not taken back twice",
    async (way, protocol) => {
      const clients = [await start(way, protocol), await start(way, protocol)];
      try {
        await eventually("neither counts", () => live("own").every((count) => count === 0));
        for (const client of clients) {
          client.go();
          expect(await client.line()).toBe("closed");
        }
        expect(live("own")).toEqual([0, 0]);
      } finally {
        for (const client of clients) client.kill();
      }
    },
  );

  test("what ended only on one side, and what lives, goes on counting", async () => {
    const half = await start("half-closed");
    const { client } = await lab.keep("10.96.5.2:80", 2);
    try {
      for (let i = 0; i < 3; i++) lab.datapath.uncountClosed();
      expect(live("own")).toEqual([1, 1]);
      expect(live("open")).toEqual([2, 2]);
      expect((await lab.connect("10.96.5.2:80")).errors).toEqual({ ECONNREFUSED: 1 });
    } finally {
      half.kill();
      await client.close();
    }
    await eventually("all are taken back", () =>
      [...live("own"), ...live("open")].every((count) => count === 0),
    );
  });

  test("under a storm of connections none is taken back twice", async () => {
    const storm = await lab.storm("10.96.5.2:80");
    const until = performance.now() + 1_500;
    let walks = 0;
    while (performance.now() < until) {
      for (let i = 0; i < 20; i++, walks++) lab.datapath.uncountClosed();
      await Bun.sleep(1);
    }
    const seen = await storm.end();
    expect(walks).toBeGreaterThan(100);
    expect(seen.made).toBeGreaterThan(50);
    expect(seen.errors).toEqual({});
    await eventually("all are taken back", () => live("open").every((count) => count === 0));
  });
});
