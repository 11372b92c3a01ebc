/** The steps between two generations are announced before they are taken, and the pins tell at each how far it is. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type GenerationState, generationStateAt } from "../../src/datapath/generation/generation-state.ts";
import {
  generationFolder,
  keptPin,
  linkPin,
  programFolder,
  tablePin,
} from "../../src/datapath/generation/pins.ts";
import type { Step } from "../../src/datapath/generation/step.ts";
import * as layout from "../../src/datapath/tables/layout.gen.ts";
import { fetchAtomics } from "../../src/kernel/features.ts";
import { CgroupLink, type Hook } from "../../src/kernel/link.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { BpfObject, BpfProgram } from "../../src/kernel/object.ts";
import { emptyMesh, type Mesh } from "../../src/mesh/model.ts";
import { asset } from "../../src/runtime/assets.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("the steps' tests are skipped: they need root");

const OTHER = "0123456789abcdef";
const THIRD = "fedcba9876543210";

function mesh(): Mesh {
  const mesh = emptyMesh();
  addFrontend(mesh, "10.96.0.1:80", { kind: "cluster", cluster: "one" });
  addCluster(mesh, "one", [endpoint("172.31.1.1:8080")]);
  return mesh;
}

describe.skipIf(!root)("steps", () => {
  let lab: DatapathLab;
  /** What was announced, and what the pins said then. */
  const heard: { step: Step | undefined; standing: GenerationState }[] = [];
  beforeAll(async () => {
    lab = await DatapathLab.create({
      announce: (step) =>
        void heard.push({ step, standing: generationStateAt(lab?.bpffs ?? "/sys/fs/bpf/none") }),
    });
  });
  afterAll(async () => {
    await lab?.remove();
  });

  function hear(): { step: Step | undefined; standing: GenerationState }[] {
    return heard.splice(0);
  }
  const own = () => lab.datapath.name;
  const names = (steps: ReturnType<typeof hear>) => steps.map(({ step }) => step?.name ?? "done");

  /** What this version has made becomes another one's, under the eyes of its readers. */
  function disown(as: string): void {
    lab.datapath.close();
    renameSync(generationFolder(lab.bpffs), generationFolder(lab.bpffs, as));
  }

  test("a first start builds, fills and attaches; nothing governs until then", () => {
    lab.publish(mesh());
    const steps = hear();
    expect(steps.filter(({ step }) => step && step.name !== "probe").map(({ step }) => step)).toEqual([
      { name: "build", to: own() },
      { name: "fill", to: own() },
      { name: "flip", to: own() },
    ]);
    expect(names(steps).slice(0, 2)).toEqual(["build", "done"]);
    expect(names(steps).at(-1)).toBe("done");
    expect(steps.at(-2)?.standing).toEqual({ live: [], others: [own()] });
    expect(steps.at(-1)?.standing).toEqual({ live: [own()], others: [] });
  });

  test("over what governs already there is no step", () => {
    lab.reopen();
    lab.publish(mesh());
    expect(hear()).toEqual([]);
  });

  test("the tables of another version are taken over from, and what is older goes", () => {
    mkdirSync(generationFolder(lab.bpffs, THIRD));
    disown(OTHER);
    const other = { abi: OTHER, code: own().code ?? "" };
    const older = { abi: THIRD };
    lab.reopen();
    expect(hear().map(({ step }) => step)).toEqual([{ name: "build", from: other, to: own() }, undefined]);
    expect(generationStateAt(lab.bpffs)).toEqual({ live: [other], others: [own(), older] });
    lab.publish(mesh());
    const steps = hear();
    expect(steps.find(({ step }) => step?.name === "flip")).toEqual({
      step: { name: "flip", from: other, to: own() },
      standing: { live: [other], others: [own(), older] },
    });
    expect(names(steps).slice(-4)).toEqual(["flip", "done", "remove", "done"]);
    expect(steps.at(-2)).toEqual({
      step: { name: "remove", from: older },
      standing: { live: [own()], others: [other, older] },
    });
    expect(steps.at(-1)?.standing).toEqual({ live: [own()], others: [other] });
    lab.datapath.removeKept(OTHER);
    expect(names(hear())).toEqual(["remove", "done"]);
  });

  /** Has the hooks run this version's other programs, over the tables that govern. */
  function runOtherPrograms(code: string): void {
    const suffix = fetchAtomics() ? ".compat.bpf.o" : ".bpf.o";
    const folder = programFolder(generationFolder(lab.bpffs), code);
    mkdirSync(folder);
    for (const name of ["connect", "release"]) {
      const object = BpfObject.open(asset(`${name}${suffix}`), name);
      for (const map of object.mapNames) {
        const own = tablePin(generationFolder(lab.bpffs), map);
        object.useMap(map, BpfMap.fromPin(existsSync(own) ? own : keptPin(lab.bpffs, map)));
      }
      object.load();
      for (const hook of object.programNames as Hook[]) {
        using program = object.program(hook);
        program.pin(join(folder, hook));
        using link = CgroupLink.fromPin(linkPin(lab.bpffs, hook));
        link.update(program);
      }
      object.close();
    }
  }

  test("other programs over the same tables; in the middle of their flip both are told", () => {
    lab.datapath.close();
    const { code = "" } = own();
    const before = { abi: layout.ABI_ID, code: "before" };
    runOtherPrograms(before.code);
    {
      using link = CgroupLink.fromPin(linkPin(lab.bpffs, "connect4"));
      using program = BpfProgram.fromPin(join(programFolder(generationFolder(lab.bpffs), code), "connect4"));
      link.update(program);
    }
    expect(generationStateAt(lab.bpffs)).toEqual({ live: [own(), before], others: [] });
    rmSync(programFolder(generationFolder(lab.bpffs), code), { recursive: true });
    runOtherPrograms("later");
    rmSync(programFolder(generationFolder(lab.bpffs), before.code), { recursive: true });
    const later = { ...before, code: "later" };
    expect(generationStateAt(lab.bpffs)).toEqual({ live: [later], others: [] });
    lab.reopen();
    lab.publish(mesh());
    const steps = hear();
    expect(steps[0]?.step).toEqual({ name: "build", from: later, to: own() });
    expect(steps.find(({ step }) => step?.name === "flip")).toEqual({
      step: { name: "flip", from: later, to: own() },
      standing: { live: [later], others: [] },
    });
    expect(steps.at(-1)?.standing).toEqual({ live: [own()], others: [] });
  });

  test("a flip that broke off behind its last hook is finished: hooks and programs of the one before go", () => {
    const stray = linkPin(lab.bpffs, "sock_release").replace("sock_release", "later_hook");
    const old = programFolder(generationFolder(lab.bpffs), "old");
    using program = BpfProgram.fromPin(
      join(programFolder(generationFolder(lab.bpffs), own().code ?? ""), "sock_release"),
    );
    {
      using link = CgroupLink.attach(program, lab.cgroup, "sock_release");
      link.pin(stray);
      mkdirSync(old);
    }
    lab.reopen();
    expect([stray, old].map((path) => existsSync(path))).toEqual([true, true]);
    lab.datapath.finishFlip();
    expect([stray, old].map((path) => existsSync(path))).toEqual([false, false]);
    expect(lab.reopen().attached).toBe(true);
  });

  test("while another version governs, nothing of it is removed", () => {
    disown(OTHER);
    lab.reopen();
    const stray = join(lab.bpffs, "links", "other_hook");
    using program = BpfProgram.fromPin(
      join(programFolder(generationFolder(lab.bpffs), own().code ?? ""), "sock_release"),
    );
    using link = CgroupLink.attach(program, lab.cgroup, "sock_release");
    link.pin(stray);
    lab.datapath.finishFlip();
    expect(existsSync(stray)).toBe(true);
  });
});
