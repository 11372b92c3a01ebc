/** Tables of two layouts beside each other. The other version's are this one's under another name: programs read them all the same. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { governedByOthers } from "../../src/datapath/generation/generation.ts";
import {
  generationFolder,
  HOOK_ORDER,
  keptPin,
  linkPin,
  programFolder,
  unfinished,
} from "../../src/datapath/generation/pins.ts";
import { ownCode } from "../../src/datapath/generation/programs.ts";
import { explainPinned } from "../../src/datapath/inspect/explain.ts";
import { inspectPinned, summarizePinned } from "../../src/datapath/inspect/inspect.ts";
import { numberOf, readPeer } from "../../src/datapath/mesh-tables/tunnel-targets.ts";
import { removePinned } from "../../src/datapath/removal.ts";
import { ChunkedTable } from "../../src/datapath/tables/chunked-table.ts";
import * as layout from "../../src/datapath/tables/layout.gen.ts";
import { readNames } from "../../src/datapath/tables/names.ts";
import { TunnelTargetReader } from "../../src/datapath/tunnel-reader.ts";
import { monotonic } from "../../src/kernel/clock.ts";
import { CgroupLink } from "../../src/kernel/link.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { BpfProgram } from "../../src/kernel/object.ts";
import { emptyMesh, type Mesh } from "../../src/mesh/model.ts";
import { eventually } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("generation tests are skipped: they need root");

const OTHER = "0123456789abcdef";
const A = "172.31.1.1:8080";
const B = "172.31.1.2:8080";

/** Clusters by their endpoints, each behind its own address: 10.96.0.1, 10.96.0.2, ... */
function meshOf(...clusters: [name: string, ...endpoints: string[]][]): Mesh {
  const mesh = emptyMesh();
  clusters.forEach(([name, ...endpoints], i) => {
    addFrontend(mesh, `10.96.0.${i + 1}:80`, { kind: "cluster", cluster: name }, `${name}:80`);
    addCluster(
      mesh,
      name,
      endpoints.map((at) => endpoint(at)),
    );
  });
  return mesh;
}

/** The kept tables of clusters' names. */
function namesOf(bpffs: string): [refs: ChunkedTable, lines: ChunkedTable] {
  using refs = BpfMap.fromPin(keptPin(bpffs, "cluster_names"));
  using lines = BpfMap.fromPin(keptPin(bpffs, "name_lines"));
  return [
    new ChunkedTable(refs, "cl_names", layout.name_ref.size).open(),
    new ChunkedTable(lines, "name_lines", layout.name_line.size).open(),
  ];
}

describe.skipIf(!root)("generations beside each other", () => {
  let lab: DatapathLab;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({ a: A, b: B });
  });
  afterAll(async () => {
    await lab?.remove();
  });

  /** What this version has made becomes another one's, under the eyes of its readers. */
  function disown(): void {
    lab.datapath.close();
    rmSync(generationFolder(lab.bpffs, OTHER), { recursive: true, force: true });
    renameSync(generationFolder(lab.bpffs), generationFolder(lab.bpffs, OTHER));
  }

  /** Either version's tables become the other's. */
  function exchange(): void {
    const own = generationFolder(lab.bpffs);
    const other = generationFolder(lab.bpffs, OTHER);
    renameSync(own, `${own}x`);
    renameSync(other, own);
    renameSync(`${own}x`, other);
  }

  function redirected(service: string): number | undefined {
    return summarizePinned(lab.bpffs).services.find((each) => each.service === service)?.redirected;
  }

  test("another version's tables govern until the first mesh is live, and nothing of what is shared changes its meaning", async () => {
    lab.publish(meshOf(["one", A], ["gone", B]));
    await lab.connect("10.96.0.1:80", { count: 3 });
    const held = await lab.keep("10.96.0.2:80", 2);
    disown();

    expect(() => explainPinned(lab.bpffs, "10.96.0.1", 80)).toThrow(`layout ${OTHER} in ${lab.bpffs}`);
    expect(() => inspectPinned(lab.bpffs)).toThrow("Ask that version's executable");
    expect(summarizePinned(lab.bpffs)).toMatchObject({ foreign: OTHER, abi: layout.ABI_ID, tables: [] });
    expect(summarizePinned(lab.bpffs).settings).toBeUndefined();
    expect(redirected("one:80")).toBe(3);

    const datapath = lab.reopen();
    expect(datapath).toMatchObject({
      adopted: false,
      attached: false,
      governs: true,
      takesOver: true,
      kept: [],
    });
    expect(datapath.summarize().foreign).toBe(OTHER);
    // The other version still decides, counts, and is asked.
    expect((await lab.connect("10.96.0.2:80")).by).toEqual({ b: 1 });
    expect(() => explainPinned(lab.bpffs, "10.96.0.1", 80)).toThrow("another kmesh version");

    lab.publish(meshOf(["one", B]));
    expect(datapath).toMatchObject({ attached: true, takesOver: false, kept: [OTHER] });
    expect(datapath.summarize().foreign).toBeUndefined();
    expect((await lab.connect("10.96.0.1:80", { count: 2 })).by).toEqual({ b: 2 });
    expect(redirected("one:80")).toBe(5);
    // What the mesh lacks is gone with the flip, its connections are not.
    expect(redirected("gone:80")).toBeUndefined();
    await held.client.close();
    expect(lab.publish(meshOf(["one", B]))).toBe(0);
    expect(lab.reopen()).toMatchObject({ adopted: true, attached: true, kept: [OTHER] });
    expect(lab.publish(meshOf(["one", B]))).toBe(0);
  });

  test("the way back: what was kept is brought up to date before anybody reads it", async () => {
    const other = generationFolder(lab.bpffs, OTHER);
    lab.datapath.close();
    exchange();
    const datapath = lab.reopen();
    expect(datapath).toMatchObject({ adopted: true, attached: false, takesOver: true });
    expect((await lab.connect("10.96.0.1:80")).by).toEqual({ b: 1 });
    lab.publish(meshOf(["two", A], ["one", B]));
    expect((await lab.connect("10.96.0.1:80")).by).toEqual({ a: 1 });
    expect((await lab.connect("10.96.0.2:80")).by).toEqual({ b: 1 });
    expect(datapath.kept).toEqual([OTHER]);
    datapath.removeKept(OTHER);
    expect(existsSync(other)).toBe(false);
    // Names that were held for the other one's sake go with the next push.
    expect([...readNames(...namesOf(lab.bpffs)).keys()].sort()).toEqual(["gone", "one", "two"]);
    lab.publish(meshOf(["two", A], ["one", B]));
    lab.reopen();
    expect([...readNames(...namesOf(lab.bpffs)).keys()].sort()).toEqual(["one", "two"]);
    expect(lab.publish(meshOf(["two", A], ["one", B]))).toBe(0);
  });

  function tunnelledMesh(): Mesh {
    const mesh = meshOf(["one", B]);
    const pair = [A, B].map((at) => endpoint(at, { transport: 1 }));
    addCluster(mesh, "pair", pair, { transports: [{ kind: "istio", sni: "", sans: [] }] });
    addFrontend(mesh, "10.96.0.9:80", { kind: "cluster", cluster: "pair" }, "pair");
    return mesh;
  }

  test("the tunnel tries another endpoint by the tables that govern, and counts failures in any case", async () => {
    const tunnelled = tunnelledMesh();
    lab.publish(tunnelled);
    const { tables } = lab.datapath;
    const target = [...Array(tables.tunnelTargets.capacity).keys()].find((id) => readPeer(tables, id)) ?? 0;
    const reader = new TunnelTargetReader(lab.bpffs);
    const failed = () =>
      summarizePinned(lab.bpffs).services.find(({ service }) => service === "pair")?.failed;
    try {
      expect(reader.read(numberOf(target))).toMatchObject({ cluster: "pair" });
      expect(reader.another(numberOf(target))).toMatchObject({ cluster: "pair" });
      reader.record(numberOf(target), "wrong", monotonic());
      expect(failed()).toBe(1);
      // The other version takes over, and this one's tables stay behind.
      disown();
      lab.reopen();
      lab.publish(tunnelled);
      lab.datapath.close();
      exchange();
      await eventually("nothing is tried by what is left behind", () => {
        return reader.another(numberOf(target)) === undefined;
      });
      expect(reader.read(numberOf(target))).toMatchObject({ cluster: "pair" });
      reader.record(numberOf(target), "wrong", monotonic());
      expect(failed()).toBe(2);
    } finally {
      reader.close();
    }
    exchange();
    lab.reopen();
  });

  test("a version that leads nothing to the tunnel closes the port of targets that are left", () => {
    lab.publish(tunnelledMesh());
    disown();
    lab.reopen();
    lab.publish(meshOf(["one", B]));
    const { tables } = lab.datapath;
    const target = [...Array(tables.tunnelTargets.capacity).keys()].find((id) => readPeer(tables, id)) ?? -1;
    expect(target).toBeGreaterThanOrEqual(0);
    expect(tables.settings.flags.tunnel).toBe(true);
  });

  test("clusters whose ids are beyond what the mesh needs: names are older than the tables", async () => {
    const many = (from: number, endpointAt: string) => {
      const mesh = meshOf(["many-299", endpointAt]);
      for (let i = from; i < 299; i++) addCluster(mesh, `many-${i}`, [endpoint(A)]);
      return mesh;
    };
    lab.publish(many(0, A));
    disown();
    lab.reopen();
    lab.publish(many(298, B));
    expect((await lab.connect("10.96.0.1:80")).by).toEqual({ b: 1 });
    // Nobody needs the names of the rest any more, of which these tables never had a record.
    lab.datapath.removeKept(OTHER);
    lab.publish(many(299, A));
    lab.reopen();
    expect((await lab.connect("10.96.0.1:80")).by).toEqual({ a: 1 });
    expect(readNames(...namesOf(lab.bpffs)).size).toBe(1);
    expect(lab.publish(many(299, A))).toBe(0);
  });

  test("hooks that only the other version has end after the flip, those of both change hands", async () => {
    lab.publish(meshOf(["one", A]));
    disown();
    using program = BpfProgram.fromPin(
      join(generationFolder(lab.bpffs, OTHER), "programs", programsOf(OTHER), "sock_release"),
    );
    const extra = linkPin(lab.bpffs, "sock_release").replace("sock_release", "later_hook");
    {
      using link = CgroupLink.attach(program, lab.cgroup, "sock_release");
      link.pin(extra);
    }
    lab.reopen();
    expect(existsSync(extra)).toBe(true);
    lab.publish(meshOf(["one", A]));
    expect(existsSync(extra)).toBe(false);
    expect((await lab.connect("10.96.0.1:80")).by).toEqual({ a: 1 });
  });

  test("a flip that broke off between two hooks is two live generations, and the next start completes it", async () => {
    lab.publish(meshOf(["one", A]));
    disown();
    lab.reopen();
    lab.publish(meshOf(["one", A]));
    // connect6 as it was before.
    using before = BpfProgram.fromPin(
      join(generationFolder(lab.bpffs, OTHER), "programs", programsOf(OTHER), "connect6"),
    );
    using link = CgroupLink.fromPin(linkPin(lab.bpffs, "connect6"));
    link.update(before);
    expect(lab.reopen()).toMatchObject({ adopted: true, attached: false, governs: true, takesOver: true });
    expect(lab.publish(meshOf(["one", A]))).toBe(0);
    expect(lab.datapath).toMatchObject({ attached: true, takesOver: false, kept: [OTHER] });
  });

  test("a kept map that no version before had is made, and one that others use is never made anew", () => {
    const idOf = (name: string) => {
      using map = BpfMap.fromPin(keptPin(lab.bpffs, name));
      return map.info.id;
    };
    lab.publish(meshOf(["one", A]));
    disown();
    const [used, shared] = [idOf("verdicts"), idOf("sockets")];
    rmSync(keptPin(lab.bpffs, "verdicts"));
    lab.reopen();
    expect(idOf("verdicts")).toBe(used);

    // As if the other version's connect() had never known it.
    disown();
    const programs = join(generationFolder(lab.bpffs, OTHER), "programs");
    for (const hook of ["connect4", "connect6"] as const) {
      rmSync(linkPin(lab.bpffs, hook));
      for (const code of readdirSync(programs)) rmSync(join(programs, code, hook));
    }
    rmSync(keptPin(lab.bpffs, "verdicts"));
    lab.reopen();
    expect(idOf("verdicts")).not.toBe(used);
    expect(idOf("sockets")).toBe(shared);
    lab.publish(meshOf(["one", A]));
    expect(lab.datapath.attached).toBe(true);
  });

  test("what an earlier start left half built is removed", () => {
    const folders = [
      unfinished(generationFolder(lab.bpffs, "fedcba9876543210")),
      unfinished(generationFolder(lab.bpffs)),
      unfinished(join(generationFolder(lab.bpffs, OTHER), "programs", "0123")),
    ];
    for (const folder of folders) mkdirSync(folder, { recursive: true });
    lab.reopen();
    expect(folders.filter((folder) => existsSync(folder))).toEqual([]);
  });

  test("somebody's folder in the place of a program is none of ours: others govern", () => {
    lab.publish(meshOf(["one", A]));
    const code = { ...ownCode(), hash: "squatted" };
    const folder = programFolder(generationFolder(lab.bpffs), code.hash);
    for (const hook of HOOK_ORDER) mkdirSync(join(folder, hook), { recursive: true });
    expect(governedByOthers(lab.bpffs, code)).toBe(true);
    expect(governedByOthers(lab.bpffs, ownCode())).toBe(false);
    rmSync(folder, { recursive: true });
  });

  test("down detaches and removes every version's part, and a tunnel that still runs serves nobody", async () => {
    lab.publish(tunnelledMesh());
    const { tables } = lab.datapath;
    const target = [...Array(tables.tunnelTargets.capacity).keys()].find((id) => readPeer(tables, id)) ?? -1;
    const reader = new TunnelTargetReader(lab.bpffs);
    expect(reader.read(numberOf(target))).toMatchObject({ cluster: "pair" });
    disown();
    lab.reopen();
    using foreign = BpfMap.create({ name: "other", type: "array", keySize: 4, valueSize: 4, maxEntries: 1 });
    foreign.pin(join(lab.bpffs, "links/foreign"));
    const links = HOOK_ORDER.map((hook) => CgroupLink.fromPin(linkPin(lab.bpffs, hook)));
    lab.datapath.close();
    const { removed } = removePinned(lab.bpffs);
    expect(removed).toContain(join(generationFolder(lab.bpffs, OTHER), "tables", "settings"));
    expect(existsSync(lab.bpffs)).toBe(false);
    for (const link of links) {
      expect(link.info().cgroupId).toBe(0n);
      link.close();
    }
    // Nothing keeps local users from its port any more.
    await eventually("the tunnel reads no target", () => reader.read(numberOf(target)) === undefined);
    // It opens the next tables before anything is attached.
    lab.reopen();
    await eventually("the tunnel has the new tables", () => reader.callers() !== undefined);
    expect(reader.read(numberOf(target))).toBeUndefined();
    lab.publish(tunnelledMesh());
    expect(reader.read(numberOf(target))).toMatchObject({ cluster: "pair" });
    reader.close();
  });

  function programsOf(abi: string): string {
    const [code] = readdirSync(join(generationFolder(lab.bpffs, abi), "programs"));
    return code ?? "";
  }
});
