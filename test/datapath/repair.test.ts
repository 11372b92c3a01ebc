/** Hooks that somebody detached or unpinned are attached again, at a start and under a running agent. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { linkPin } from "../../src/datapath/generation/pins.ts";
import { unpin } from "../../src/kernel/bpffs.ts";
import { CgroupLink, type Hook } from "../../src/kernel/link.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { eventually } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(90_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("tests of repair are skipped: they need root");

describe.skipIf(!root)("hooks that were taken away", () => {
  let lab: DatapathLab;
  const said: string[] = [];
  beforeAll(async () => {
    lab = await DatapathLab.create({ upkeep: 100, log: (line) => said.push(line) });
    await lab.serve({ a: "172.31.6.1:8080" });
    const mesh = emptyMesh();
    addCluster(mesh, "c", [endpoint("172.31.6.1:8080")]);
    addFrontend(mesh, "10.96.6.1:80", { kind: "cluster", cluster: "c" });
    lab.publish(mesh);
  });
  afterAll(async () => {
    await lab?.remove();
  });

  const off = () => lab.datapath.summarize().hooks.filter(({ attached }) => !attached);

  function detach(hook: Hook): void {
    using link = CgroupLink.fromPin(linkPin(lab.bpffs, hook));
    link.detach();
  }

  function ids(...hooks: Hook[]): number[] {
    return hooks.map((hook) => {
      using link = CgroupLink.fromPin(linkPin(lab.bpffs, hook));
      return link.info().id;
    });
  }

  test("a running agent attaches them again, and leaves the others alone", async () => {
    const others = ids("sock_release", "getpeername4", "connect6");
    detach("connect4");
    unpin(linkPin(lab.bpffs, "sock_release"));
    expect(off().map(({ hook }) => hook)).toEqual(["sock_release", "connect4"]);
    await eventually("they are attached", () => off().length === 0);
    expect(ids("sock_release", "getpeername4", "connect6")).toEqual(others);
    expect(said.join("\n")).toContain(`pinned again: ${linkPin(lab.bpffs, "sock_release")}`);
    expect(said.join("\n")).toContain("attached again: connect4");
    expect((await lab.connect("10.96.6.1:80")).by).toEqual({ a: 1 });
  });

  test("a start attaches them before istiod says anything", async () => {
    lab.datapath.close();
    detach("connect4");
    unpin(linkPin(lab.bpffs, "getpeername4"));
    expect((await lab.connect("10.96.6.1:80")).made).toBe(0);
    lab.reopen();
    expect(off()).toEqual([]);
    expect(lab.datapath).toMatchObject({ attached: true, governs: true });
    const tally = await lab.connect("10.96.6.1:80");
    expect(tally).toMatchObject({ by: { a: 1 }, peers: { "10.96.6.1 80": 1 } });
  });
});
