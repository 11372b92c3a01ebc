/** What was done to pins is told, by reading alone, and what is left is shown. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { generationFolder, keptPin, linkPin, tablePin } from "../../src/datapath/generation/pins.ts";
import { damageAt } from "../../src/datapath/inspect/damage.ts";
import { summarizePinned } from "../../src/datapath/inspect/inspect.ts";
import { listPins, unpin } from "../../src/kernel/bpffs.ts";
import { CgroupLink } from "../../src/kernel/link.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(90_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("tests of damage are skipped: they need root");

describe.skipIf(!root)("damage to what is pinned", () => {
  let lab: DatapathLab;
  const table = (name: string) => tablePin(generationFolder(lab.bpffs), name);
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({ a: "172.31.7.1:8080" });
  });
  afterAll(async () => {
    await lab?.remove();
  });

  test("there is none before the first mesh, and none after it", async () => {
    expect(damageAt(lab.bpffs)).toEqual([]);
    const mesh = emptyMesh();
    addCluster(mesh, "c", [endpoint("172.31.7.1:8080")]);
    addFrontend(mesh, "10.96.7.1:80", { kind: "cluster", cluster: "c" });
    lab.publish(mesh);
    expect(damageAt(lab.bpffs)).toEqual([]);
    expect((await lab.connect("10.96.7.1:80", { count: 3 })).by).toEqual({ a: 3 });
  });

  test("hooks: detached, without a link, and something else in the link's place", () => {
    lab.datapath.close();
    using link = CgroupLink.fromPin(linkPin(lab.bpffs, "connect4"));
    link.detach();
    unpin(linkPin(lab.bpffs, "getpeername6"));
    unpin(linkPin(lab.bpffs, "getpeername4"));
    using map = BpfMap.create({ name: "sb", type: "hash", keySize: 4, valueSize: 4, maxEntries: 1 });
    map.pin(linkPin(lab.bpffs, "getpeername4"));
    const found = damageAt(lab.bpffs);
    expect(found.map(({ what }) => what)).toEqual([
      `getpeername4 is not attached: ${linkPin(lab.bpffs, "getpeername4")} is the map sb, which is not kmesh's`,
      `getpeername6 is not attached: somebody removed the link ${linkPin(lab.bpffs, "getpeername6")}`,
      `connect4 is not attached: somebody detached the link ${linkPin(lab.bpffs, "connect4")}`,
    ]);
    expect(found[2]?.consequence).toContain("IPv4 connections go where apps send them");
    const { hooks } = summarizePinned(lab.bpffs);
    expect(hooks.filter(({ attached }) => attached).map(({ hook }) => hook)).toEqual([
      "sock_release",
      "connect6",
    ]);
    unpin(linkPin(lab.bpffs, "getpeername4"));
    lab.reopen();
    expect(damageAt(lab.bpffs)).toEqual([]);
  });

  test("tables whose pins are gone are named, and read all the same by the programs that hold them", () => {
    lab.datapath.close();
    const before = summarizePinned(lab.bpffs);
    const gone = [table("settings"), table("targets"), keptPin(lab.bpffs, "sockets")];
    for (const path of gone) unpin(path);
    const [damage, ...more] = damageAt(lab.bpffs);
    expect(more).toEqual([]);
    for (const path of gone) expect(damage?.what).toMatch(new RegExp(`somebody removed .*${path}`));
    expect(damage?.consequence).toContain("governed on");
    expect(summarizePinned(lab.bpffs)).toEqual(before);
    expect(before.services.find(({ service }) => service !== "")).toMatchObject({ redirected: 3 });
  });

  test("without the folder of the tables hooks and counters are still shown", () => {
    unpin(generationFolder(lab.bpffs));
    expect(damageAt(lab.bpffs)[0]?.what).toContain("no pin is left");
    const summary = summarizePinned(lab.bpffs);
    expect(summary.hooks.every(({ attached }) => attached)).toBe(true);
    expect(summary.services.find(({ service }) => service !== "")).toMatchObject({ redirected: 3 });
  });

  test("names without a pin are read by the programs that they are bound to", () => {
    unpin(keptPin(lab.bpffs, "service_names"));
    const found = damageAt(lab.bpffs).map(({ what }) => what);
    expect(found.join("\n")).toContain(keptPin(lab.bpffs, "service_names"));
    expect(summarizePinned(lab.bpffs).services.find(({ service }) => service !== "")?.redirected).toBe(3);
  });

  test("lost ones are told as long as something is left that needs them", () => {
    for (const path of listPins(join(lab.bpffs, "links"))) unpin(path);
    mkdirSync(join(generationFolder(lab.bpffs), "tables"), { recursive: true });
    const found = damageAt(lab.bpffs).find(({ what }) => what.includes("no program holds"));
    expect(found?.what).toContain(keptPin(lab.bpffs, "service_names"));
    expect(found?.cure).toContain("kmesh down");
    expect(summarizePinned(lab.bpffs).hooks.every(({ attached }) => !attached)).toBe(true);
  });

  test("with nothing left that needs them, a start makes all anew", () => {
    expect(lab.reopen()).toMatchObject({ adopted: false, attached: false });
    expect(damageAt(lab.bpffs).every(({ what }) => what.includes("is not attached"))).toBe(true);
    expect(lab.datapath.totals().connections).toBe(0);
  });
});
