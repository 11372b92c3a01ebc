/** Live counts that damage made wrong are put right, and those that are right stay, whatever goes on meanwhile. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { keptPin, linkPin } from "../../src/datapath/generation/pins.ts";
import type { Reconciliation } from "../../src/datapath/inspect/reconcile.ts";
import { ChunkedTable } from "../../src/datapath/tables/chunked-table.ts";
import * as layout from "../../src/datapath/tables/layout.gen.ts";
import { CgroupLink } from "../../src/kernel/link.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { emptyMesh, type Mesh } from "../../src/mesh/model.ts";
import { RunningClient } from "../interop/mesh-lab.ts";
import { eventually, output, placed } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(90_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("tests of reconciliation are skipped: they need root");

const LIVE = layout.endpoint_load.fields.live.offset;
const CLUSTER_LIVE = layout.cluster_load.fields.live.offset;
const NOTHING = { endpoints: 0, clusters: 0 };

function testMesh(): Mesh {
  const mesh = emptyMesh();
  addCluster(mesh, "c", [endpoint("172.31.8.1:8080")], { maxConnections: 8 });
  addFrontend(mesh, "10.96.8.1:80", { kind: "cluster", cluster: "c" });
  addCluster(mesh, "closed", [endpoint("172.31.8.1:9")]);
  addFrontend(mesh, "10.96.8.2:80", { kind: "cluster", cluster: "closed" });
  addCluster(mesh, "busy", [endpoint("172.31.8.1:8080")]);
  addFrontend(mesh, "10.96.8.3:80", { kind: "cluster", cluster: "busy" });
  return mesh;
}

describe.skipIf(!root)("live counts against the sockets", () => {
  let lab: DatapathLab;
  let loads: ChunkedTable;
  let clusterLoads: ChunkedTable;
  const maps: BpfMap[] = [];

  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({ a: "172.31.8.1:8080" });
    lab.publish(testMesh());
    maps.push(...["endpoint_loads", "cluster_loads"].map((name) => BpfMap.fromPin(keptPin(lab.bpffs, name))));
    const [endpoints, clusters] = maps;
    if (!endpoints || !clusters) throw new Error("not pinned");
    loads = new ChunkedTable(endpoints, "ep_loads", layout.endpoint_load.size);
    clusterLoads = new ChunkedTable(clusters, "cl_loads", layout.cluster_load.size);
  });
  afterAll(async () => {
    for (const map of maps) map.close();
    await lab?.remove();
  });

  /** In the namespace of the sockets. */
  async function reconcile(lower: boolean): Promise<Reconciliation> {
    const source = (path: string) =>
      JSON.stringify(join(import.meta.dirname, "../../src/datapath/inspect", path));
    const text = await output(
      placed(
        [
          process.execPath,
          "-e",
          `const { reconcileLive } = await import(${source("reconcile.ts")});
           const { openPinned } = await import(${source("inspect.ts")});
           console.log(JSON.stringify(await reconcileLive(openPinned(${JSON.stringify(lab.bpffs)}), ${lower})));`,
        ],
        { netns: lab.namespace.path },
      ),
    );
    return JSON.parse(text);
  }

  /** Ids in the order in which the mesh names them: the first endpoint and cluster, each the only one counted. */
  function idOf(table: ChunkedTable, at: number): number {
    for (let id = 0; id < table.capacity; id++) if (table.count(id, at) !== 0) return id;
    return Number.NaN;
  }

  const live = () => lab.datapath.inspect().clusters.find(({ name }) => name === "c")?.live ?? Number.NaN;
  const endpointLive = () =>
    lab.datapath.inspect().clusters.find(({ name }) => name === "c")?.endpoints[0]?.live ?? Number.NaN;

  test("nothing is corrected where nothing is wrong, also while connections come and go", async () => {
    const { client } = await lab.keep("10.96.8.1:80", 3);
    const storm = await lab.storm("10.96.8.3:80");
    for (const lower of [false, true]) {
      const report = await reconcile(lower);
      expect(report).toMatchObject({ raised: NOTHING, lowered: NOTHING });
      expect(report.sockets).toBeGreaterThanOrEqual(3);
    }
    await storm.end();
    await client.close();
    // Of the storm's last sockets too: the next test looks for the only id that is counted.
    const none = () => Number.isNaN(idOf(loads, LIVE)) && Number.isNaN(idOf(clusterLoads, CLUSTER_LIVE));
    await eventually("the counts are back", none);
  });

  test("what is counted too little is raised, while the sockets live", async () => {
    const { client } = await lab.keep("10.96.8.1:80", 4);
    loads.add(idOf(loads, LIVE), LIVE, -3);
    clusterLoads.add(idOf(clusterLoads, CLUSTER_LIVE), CLUSTER_LIVE, -2);
    expect(await reconcile(false)).toMatchObject({
      sockets: 4,
      raised: { endpoints: 3, clusters: 2 },
      lowered: NOTHING,
    });
    expect([endpointLive(), live()]).toEqual([4, 4]);
    await client.close();
    await eventually("the counts are back", () => live() === 0 && endpointLive() === 0);
  });

  test("a count below zero refuses nobody, and comes back to zero", async () => {
    const { client } = await lab.keep("10.96.8.1:80", 1);
    const [endpointId, clusterId] = [idOf(loads, LIVE), idOf(clusterLoads, CLUSTER_LIVE)];
    await client.close();
    await eventually("the counts are back", () => live() === 0 && endpointLive() === 0);
    loads.add(endpointId, LIVE, -2);
    clusterLoads.add(clusterId, CLUSTER_LIVE, -2);
    expect([endpointLive(), live()]).toEqual([-2, -2]);
    expect(await lab.connect("10.96.8.1:80", { count: 2 })).toMatchObject({ made: 2, errors: {} });
    expect(await reconcile(false)).toMatchObject({ raised: { endpoints: 2, clusters: 2 } });
    expect([endpointLive(), live()]).toEqual([0, 0]);
  });

  test("closed sockets that an app holds are counted and not listed: they stay counted", async () => {
    const script = join(import.meta.dirname, "lives.py");
    const client = new RunningClient(
      placed(["/usr/bin/python3", script, "refused-again", "10.96.8.2", "80", "8081"], {
        netns: lab.namespace.path,
        cgroup: lab.cgroup,
      }),
    );
    try {
      expect(await client.line()).toBe("alive");
      expect(await reconcile(false)).toMatchObject({ raised: NOTHING, lowered: NOTHING });
      const closed = lab.datapath.inspect().clusters.find(({ name }) => name === "closed");
      expect(closed?.live).toBe(1);
    } finally {
      client.kill();
    }
    await eventually("the count is back", () => Number.isNaN(idOf(loads, LIVE)));
  });

  test("what ended while sock_release was gone is taken out, when it is known to have been gone", async () => {
    const { client } = await lab.keep("10.96.8.1:80", 3);
    const { client: other } = await lab.keep("10.96.8.1:80", 2);
    {
      using link = CgroupLink.fromPin(linkPin(lab.bpffs, "sock_release"));
      link.detach();
    }
    await client.close();
    expect(live()).toBe(5);
    lab.reopen();
    lab.publish(testMesh());
    using link = CgroupLink.fromPin(linkPin(lab.bpffs, "sock_release"));
    expect(link.info().cgroupId).not.toBe(0n);
    expect(await reconcile(false)).toMatchObject({ lowered: NOTHING });
    expect(await reconcile(true)).toMatchObject({
      sockets: 2,
      raised: NOTHING,
      lowered: { endpoints: 3, clusters: 3 },
    });
    expect([endpointLive(), live()]).toEqual([2, 2]);
    await other.close();
    await eventually("the counts are back", () => live() === 0 && endpointLive() === 0);
  });
});
