/** Live connections are counted once each, however they begin and end. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { emptyMesh } from "../../src/mesh/model.ts";
import { RunningClient } from "../interop/mesh-lab.ts";
import { eventually, output, placed } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(90_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("live count tests are skipped: they need root");

describe.skipIf(!root)("live connections", () => {
  let lab: DatapathLab;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({ a: "172.31.1.1:8080", b: "127.0.0.1:8081" });
    // SYNs to it go out on loopback and come back to nobody.
    await output(["ip", "-n", lab.namespace.name, "route", "add", "172.31.9.0/24", "dev", "lo"]);
    const mesh = emptyMesh();
    const endpoints = {
      open: "172.31.1.1:8080",
      closed: "172.31.1.1:9",
      silent: "172.31.9.9:80",
      away: "198.51.100.1:80",
    };
    Object.entries(endpoints).forEach(([name, at], i) => {
      addCluster(mesh, name, [endpoint(at)]);
      addFrontend(mesh, `10.96.7.${i + 1}:80`, { kind: "cluster", cluster: name });
    });
    lab.publish(mesh);
  });
  afterAll(async () => {
    await lab?.remove();
  });

  const live = (name: string) =>
    lab.datapath.inspect().clusters.find((cluster) => cluster.name === name)?.live ?? Number.NaN;

  test.each([
    ["plain", "open"],
    ["nonblocking", "open"],
    ["reset", "open"],
    ["forked", "open"],
    ["fastopen", "open"],
    ["elsewhere", "open"],
    ["killed", "open"],
    ["refused-again", "closed"],
    ["syn-sent", "silent"],
    ["unreachable", "away"],
  ])("%s (%s)", async (way, cluster) => {
    const address =
      { open: "10.96.7.1", closed: "10.96.7.2", silent: "10.96.7.3", away: "10.96.7.4" }[cluster] ?? "";
    const script = join(import.meta.dirname, "lives.py");
    expect(live(cluster)).toBe(0);
    const client = new RunningClient(
      placed(["/usr/bin/python3", script, way, address, "80", "8081"], {
        netns: lab.namespace.path,
        cgroup: lab.cgroup,
      }),
    );
    try {
      expect(await client.line()).toBe("alive");
      expect(live(cluster)).toBe(1);
      client.go();
      if (way !== "killed") expect(await client.line()).toBe("over");
      await eventually("the count is back", () => live(cluster) === 0);
    } finally {
      client.kill();
    }
  });
});
