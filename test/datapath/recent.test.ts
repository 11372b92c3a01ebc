/** The last refused and failed connections, readable without an agent. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { basename } from "node:path";
import { formatRecent } from "../../src/cli/status/recent.ts";
import { summarizePinned } from "../../src/datapath/inspect/inspect.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { eventually } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(90_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("tests of recent connections are skipped: they need root");

describe.skipIf(!root)("recent connections", () => {
  let lab: DatapathLab;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({ open: "172.31.1.1:8080", six: "[fd00:31::1]:8080" });
    const mesh = emptyMesh();
    addCluster(mesh, "closed", [endpoint("172.31.1.1:9"), endpoint("[fd00:31::1]:9")]);
    addCluster(mesh, "open", [endpoint("172.31.1.1:8080")]);
    addFrontend(mesh, "10.96.4.1:80", { kind: "cluster", cluster: "closed" }, "closed:80");
    addFrontend(mesh, "[2001:2::4:1]:80", { kind: "cluster", cluster: "closed" }, "closed:80");
    addFrontend(mesh, "10.96.4.2:80", { kind: "cluster", cluster: "open" }, "open:80");
    addFrontend(mesh, "10.96.4.3:80", { kind: "refuse", reason: "policy" }, "policy:80");
    mesh.fallback = { kind: "refuse", reason: "not-in-registry" };
    lab.publish(mesh);
  });
  afterAll(async () => {
    await lab?.remove();
  });

  const recent = () => summarizePinned(lab.bpffs).recent ?? [];

  test("nothing before the first; what went well leaves nothing", async () => {
    expect(await lab.connect("10.96.4.2:80", { count: 5 })).toMatchObject({ made: 5 });
    expect(recent()).toEqual([]);
    expect(formatRecent(recent())).toEqual([]);
  });

  test("a refused and a failed one, with unit, destination, service and reason, the newest first", async () => {
    await lab.connect("10.96.4.3:80");
    await lab.connect("10.9.9.9:443");
    await lab.connect("10.96.4.1:80");
    await lab.connect("[2001:2::4:1]:80");
    const unit = basename(lab.cgroup);
    const task = { unit, command: "python3", pid: expect.any(Number) };
    await eventually("the last one has ended", () => recent().length === 4);
    const found = recent();
    const [page = ""] = formatRecent(recent());
    expect(found).toMatchObject([
      { number: 4, outcome: "failed", address: "2001:2::4:1", endpoint: { address: "fd00:31::1", port: 9 } },
      { number: 3, outcome: "failed", address: "10.96.4.1", endpoint: { address: "172.31.1.1", port: 9 } },
      {
        number: 2,
        outcome: "refused",
        reason: "not-in-registry",
        address: "10.9.9.9",
        port: 443,
        service: "",
      },
      {
        number: 1,
        outcome: "refused",
        reason: "policy",
        address: "10.96.4.3",
        port: 80,
        service: "policy:80",
      },
    ]);
    for (const each of found) {
      expect(each).toMatchObject(task);
      expect(each.agoMs).toBeLessThan(20_000);
    }
    expect(page).toContain("LAST REFUSED AND FAILED CONNECTIONS");
    expect(page).toMatch(
      new RegExp(`${unit} \\(python3, pid \\d+\\) +10.96.4.3:80 \\(policy:80\\) +refused: policy`),
    );
    expect(page).toMatch(/\[2001:2::4:1\]:80 \(closed:80\) +failed at \[fd00:31::1\]:9/);
  });

  test("the oldest give way; the page shows ten", async () => {
    await lab.connect("10.9.9.9:443", { count: 100 });
    const found = recent();
    expect(found).toHaveLength(64);
    expect(found.map(({ number }) => number)).toEqual(Array.from({ length: 64 }, (_, i) => 104 - i));
    expect(formatRecent(found)[0]?.split("\n")).toHaveLength(2 + 10);
  });

  test("in shadow mode nothing is refused, and nothing stands there", async () => {
    lab.reopen({ shadow: true });
    const before = recent()[0]?.number;
    await lab.connect("10.96.4.3:80", { timeout: 1 });
    expect(recent()[0]?.number).toBe(before ?? Number.NaN);
    lab.reopen();
  });
});
