/** Pins that somebody removed, or pinned something else over. Connections never notice, and nobody's pin is deleted. */

import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { Datapath } from "../../src/datapath/datapath.ts";
import { pinFaults } from "../../src/datapath/generation/pin-repair.ts";
import {
  completeFolders,
  generationFolder,
  HOOK_ORDER,
  keptPin,
  linkPin,
  programFolder,
  tablePin,
} from "../../src/datapath/generation/pins.ts";
import { ownCode } from "../../src/datapath/generation/programs.ts";
import { inspectPinned } from "../../src/datapath/inspect/inspect.ts";
import { ownPins, removePinned } from "../../src/datapath/removal.ts";
import { GENERATION_MAPS, KEPT_MAPS } from "../../src/datapath/tables/tables.ts";
import { listPins } from "../../src/kernel/bpffs.ts";
import { CgroupLink, type Hook } from "../../src/kernel/link.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { pinnedAt } from "../../src/kernel/pinned.ts";
import { emptyMesh, type Mesh } from "../../src/mesh/model.ts";
import { eventually } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("tests of damaged pins are skipped: they need root");

const AT = "10.96.7.1:80";

describe.skipIf(!root)("damaged pins", () => {
  let lab: DatapathLab;
  let mesh: Mesh;
  const said: string[] = [];

  beforeAll(async () => {
    lab = await DatapathLab.create({ log: (line) => said.push(line) });
    await lab.serve({ a: "172.31.7.1:8080" });
    mesh = emptyMesh();
    addCluster(mesh, "c", [endpoint("172.31.7.1:8080")]);
    addFrontend(mesh, AT, { kind: "cluster", cluster: "c" });
    lab.publish(mesh);
  });
  afterAll(async () => {
    await lab?.remove();
  });
  beforeEach(() => {
    said.length = 0;
  });

  const generation = () => generationFolder(lab.bpffs);
  const code = () => completeFolders(join(generation(), "programs"))[0] ?? "";
  const programPin = (hook: Hook) => join(generation(), "programs", code(), hook);
  const aside = () =>
    existsSync(join(lab.bpffs, "aside")) ? readdirSync(join(lab.bpffs, "aside")).sort() : [];

  /** What lies at each path below the lab's folder, but in aside/: its kind and the kernel's number. */
  function pins(): Record<string, string> {
    const all = listPins(lab.bpffs).filter((path) => !path.includes("/aside/"));
    return Object.fromEntries(
      all.map((path) => {
        const { kind, id } = pinnedAt(path) ?? { kind: "other", id: 0 };
        return [path.slice(lab.bpffs.length), `${kind} ${id}`];
      }),
    );
  }

  /** One that does not belong to kmesh, pinned at `path`, whose own pin is lost. */
  function squat(path: string): number {
    rmSync(path, { recursive: true, force: true });
    using other = BpfMap.create({ name: "squatter", type: "array", keySize: 4, valueSize: 4, maxEntries: 1 });
    other.pin(path);
    return other.info.id;
  }

  function linkId(hook: Hook): number {
    using link = CgroupLink.fromPin(linkPin(lab.bpffs, hook));
    return link.info().id;
  }

  async function expectGoverned(): Promise<void> {
    expect((await lab.connect(AT)).by).toEqual({ a: 1 });
  }

  test("nothing is wrong with what a start has made", () => {
    expect(pinFaults(lab.bpffs, true)).toEqual([]);
  });

  test.each([
    ...GENERATION_MAPS.map((name) => [name, () => tablePin(generation(), name)] as const),
    ...KEPT_MAPS.map((name) => [name, () => keptPin(lab.bpffs, name)] as const),
    ...HOOK_ORDER.map((hook) => [`program ${hook}`, () => programPin(hook)] as const),
  ])("removed without an agent, pinned again by a start: %s", async (_, pathOf) => {
    const before = pins();
    const path = pathOf();
    lab.datapath.close();
    rmSync(path);
    expect(pinFaults(lab.bpffs).map((fault) => [fault.path, fault.found])).toEqual([[path, undefined]]);
    if (!path.includes("/programs/")) expect(inspectPinned(lab.bpffs).frontends.length).toBe(1);
    await expectGoverned();
    lab.reopen();
    expect(pins()).toEqual(before);
    expect(lab.datapath.attached).toBe(true);
    await expectGoverned();
    expect(lab.publish(mesh)).toBe(0);
  });

  test.each(["keep", "tables", "programs", "all but one"])(
    "a folder removed without an agent: %s",
    async (what) => {
      const before = pins();
      lab.datapath.close();
      const folder = what === "keep" ? join(lab.bpffs, "keep") : join(generation(), what);
      if (what !== "all but one") rmSync(folder, { recursive: true });
      else {
        for (const path of listPins(lab.bpffs))
          if (!path.includes("/links/") && !path.endsWith("/slots")) rmSync(path);
      }
      lab.reopen();
      expect(pins()).toEqual(before);
      expect(lab.datapath.attached).toBe(true);
      expect(lab.publish(mesh)).toBe(0);
      await expectGoverned();
    },
  );

  test("all tables and programs unpinned without an agent: they govern on until new ones are filled", async () => {
    const held = await lab.keep(AT, 2);
    lab.datapath.close();
    rmSync(join(lab.bpffs, "gen"), { recursive: true });
    await expectGoverned();
    lab.reopen();
    expect(lab.datapath).toMatchObject({ adopted: false, attached: false, takesOver: true, governs: true });
    await expectGoverned();
    lab.publish(mesh);
    expect(lab.datapath).toMatchObject({ attached: true, takesOver: false, kept: [] });
    await expectGoverned();
    expect(lab.datapath.inspect().clusters[0]).toMatchObject({ name: "c", live: 2 });
    await held.client.close();
    expect(lab.reopen()).toMatchObject({ adopted: true, attached: true });
    expect(lab.publish(mesh)).toBe(0);
  });

  test("a running agent pins all of it again, and no hook is off for a moment", async () => {
    lab.reopen({ upkeep: 50 });
    const before = pins();
    const storm = await lab.storm(AT);
    for (const victim of [
      lab.bpffs,
      join(lab.bpffs, "links"),
      keptPin(lab.bpffs, "cluster_names"),
      programPin("connect4"),
    ]) {
      rmSync(victim, { recursive: true });
      await eventually("all is pinned again", () => {
        try {
          return JSON.stringify(pins()) === JSON.stringify(before);
        } catch {
          return false;
        }
      });
    }
    expect((await storm.end()).errors).toEqual({});
    expect(said.join("\n")).not.toContain("attached again");
    lab.reopen();
    expect(pins()).toEqual(before);
  });

  test("an agent that what is pinned belongs to no more puts nothing right, at its end neither", async () => {
    let asked = 0;
    lab.reopen({ upkeep: 20, ownsPins: () => ++asked < 0 });
    const before = pins();
    rmSync(programPin("connect4"));
    const left = pins();
    await eventually("it looked", () => asked > 2);
    expect(pins()).toEqual(left);
    const looked = asked;
    lab.datapath.close();
    expect(asked).toBeGreaterThan(looked);
    expect(pins()).toEqual(left);
    lab.reopen();
    expect(Object.keys(pins())).toEqual(Object.keys(before));
  });

  test.each([
    ["a link's", () => linkPin(lab.bpffs, "connect4")],
    ["a kept map's", () => keptPin(lab.bpffs, "agents")],
    ["a table's", () => tablePin(generation(), "settings")],
    ["a program's", () => programPin("connect6")],
  ] as const)("somebody else's map in %s place is moved aside", async (_, pathOf) => {
    for (const alive of [true, false]) {
      lab.reopen(alive ? { upkeep: 50 } : {});
      const before = pins();
      const path = pathOf();
      if (!alive) lab.datapath.close();
      const id = squat(path);
      if (!alive) {
        const link = path.includes("/links/");
        expect(pinFaults(lab.bpffs)).toMatchObject([{ path, found: { kind: "map", id, name: "squatter" } }]);
        if (!link) await expectGoverned();
        lab.reopen();
      }
      const folder = join(lab.bpffs, "aside");
      const moved = join(folder, path.slice(lab.bpffs.length + 1).replaceAll("/", "_"));
      await eventually("it lies aside", () => pinnedAt(moved));
      expect(pinnedAt(moved)).toMatchObject({ kind: "map", id });
      await eventually("ours is back", () => Object.keys(pins()).length === Object.keys(before).length);
      // Without an agent a link ends with its pin; everything else is as it was.
      const now = pins();
      if (!alive) delete now[path.slice(lab.bpffs.length)];
      expect(before).toMatchObject(now);
      expect(said.join("\n")).toContain(`${path} was the map squatter, which is not kmesh's: it lies in`);
      await expectGoverned();
      rmSync(folder, { recursive: true });
    }
  });

  test("a link of the right hook with somebody else's program, a folder, a symbolic link", async () => {
    lab.datapath.close();
    const place = linkPin(lab.bpffs, "getpeername4");
    const id = linkId("connect6");
    renameSync(linkPin(lab.bpffs, "connect6"), place);
    mkdirSync(linkPin(lab.bpffs, "connect6"));
    rmSync(keptPin(lab.bpffs, "units"));
    symlinkSync(keptPin(lab.bpffs, "enrolled"), keptPin(lab.bpffs, "units"));
    lab.reopen();
    // Ours, under a wrong name, has its own again.
    expect(aside()).toEqual(["keep_units", "links_connect6"]);
    expect(linkId("connect6")).toBe(id);
    expect(lstatSync(join(lab.bpffs, "aside", "keep_units")).isSymbolicLink()).toBe(true);
    expect(lab.datapath.attached).toBe(true);
    expect(pinFaults(lab.bpffs)).toEqual([]);
    rmSync(join(lab.bpffs, "aside"), { recursive: true });
    await expectGoverned();
  });

  test("links that were renamed get their names back, and no hook runs twice", async () => {
    const before = pins();
    lab.datapath.close();
    renameSync(linkPin(lab.bpffs, "connect4"), join(lab.bpffs, "links", "x"));
    renameSync(linkPin(lab.bpffs, "connect6"), linkPin(lab.bpffs, "connect4"));
    renameSync(linkPin(lab.bpffs, "sock_release"), linkPin(lab.bpffs, "connect6"));
    await expectGoverned();
    lab.reopen();
    expect(pins()).toEqual(before);
    expect(said.join("\n")).toContain(`the link of connect6 was called ${linkPin(lab.bpffs, "connect4")}`);
    expect(lab.datapath.attached).toBe(true);
    expect(lab.publish(mesh)).toBe(0);
    await expectGoverned();
  });

  test("a link that lies aside gets its name back, where that is free; down detaches it in any case", async () => {
    const before = pins();
    lab.datapath.close();
    const aside = join(lab.bpffs, "aside");
    mkdirSync(aside);
    renameSync(linkPin(lab.bpffs, "connect4"), join(aside, "links_connect4"));
    lab.reopen();
    expect(pins()).toEqual(before);
    expect(said.join("\n")).toContain(`the link of connect4 was called ${join(aside, "links_connect4")}`);
    await expectGoverned();
    // A second one of the hook.
    lab.datapath.close();
    renameSync(linkPin(lab.bpffs, "connect4"), join(lab.bpffs, "x"));
    lab.reopen();
    renameSync(join(lab.bpffs, "x"), join(aside, "x"));
    squat(join(aside, "theirs"));
    using second = CgroupLink.fromPin(join(aside, "x"));
    lab.datapath.close();
    expect(ownPins(lab.bpffs)).toContain(join(aside, "x"));
    const { removed } = removePinned(lab.bpffs);
    expect(removed).toContain(join(aside, "x"));
    expect(second.info().cgroupId).toBe(0n);
    expect(listPins(lab.bpffs)).toEqual([join(aside, "theirs")]);
    rmSync(lab.bpffs, { recursive: true });
    lab.reopen();
    lab.publish(mesh);
    await expectGoverned();
  });

  test.each([
    ["a link", () => linkPin(lab.bpffs, "connect4")],
    ["a kept map", () => keptPin(lab.bpffs, "agents")],
    ["a table", () => tablePin(generation(), "settings")],
    ["a program", () => programPin("connect6")],
  ] as const)(
    "%s that can't be opened stays where it is: a start fails, an agent tells it",
    async (_, pathOf) => {
      lab.datapath.close();
      const before = pins();
      const path = pathOf();
      // Without these capabilities root is refused by the mode, too.
      const { status, stdout, stderr } = spawnSync(
        "setpriv",
        [
          ...["--bounding-set", "-dac_override,-dac_read_search"],
          ...[process.execPath, join(import.meta.dirname, "unreadable.ts"), path],
          JSON.stringify({ ...lab.options, log: undefined }),
        ],
        { encoding: "utf8" },
      );
      chmodSync(path, 0o600);
      expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      const { told, damage, repaired, cleared, start, down } = JSON.parse(stdout);
      const error = `bpf_obj_get(${path}): EACCES: the object pinned there can't be inspected, so nothing is changed`;
      expect(told.join("\n")).toContain(error);
      expect(told.join("\n")).not.toContain("is not kmesh's");
      expect(damage).toContain(error);
      expect(repaired).toBe(true);
      expect(cleared).toBe(true);
      expect(start).toContain(error);
      if (path.includes("/links/")) expect(down).toContain(error);
      expect(pins()).toEqual(before);
      lab.reopen();
      expect(lab.datapath.attached).toBe(true);
      expect(aside()).toEqual([]);
      await expectGoverned();
    },
  );

  test.each([
    ["a cgroup that does not exist", { cgroups: ["/sys/fs/cgroup/kmesh-none"] }],
    ["a manifest that can't be written", undefined],
  ])("a start that fails late leaves no descriptor: %s", (_, more) => {
    const descriptors = () => readdirSync("/proc/self/fd").length;
    lab.datapath.close();
    const announce = (step: unknown) => {
      if (step === undefined) throw new Error("no space");
    };
    const before = descriptors();
    for (let i = 0; i < 3; i++) {
      // Programs to be built, so that the announcement comes.
      if (!more) rmSync(programFolder(generation(), ownCode().hash), { recursive: true });
      expect(() => Datapath.open({ ...lab.options, ...(more ?? { announce }) })).toThrow();
    }
    expect(descriptors()).toBe(before);
    lab.reopen();
  });

  test("somebody's folder among the generations is none, and stays", async () => {
    const theirs = join(lab.bpffs, "gen", "backup");
    for (const folder of [theirs, `${theirs}_new`]) {
      mkdirSync(folder);
      squat(join(folder, "tables"));
    }
    lab.reopen();
    expect(lab.datapath).toMatchObject({ attached: true, kept: [] });
    expect(pinFaults(lab.bpffs)).toEqual([]);
    expect(lab.publish(mesh)).toBe(0);
    for (const folder of [theirs, `${theirs}_new`]) {
      expect(pinnedAt(join(folder, "tables"))).toMatchObject({ name: "squatter" });
      rmSync(folder, { recursive: true });
    }
    await expectGoverned();
  });

  test("a map where a folder belongs", async () => {
    lab.datapath.close();
    const before = pins();
    for (const folder of [join(lab.bpffs, "keep"), join(generation(), "tables"), join(lab.bpffs, "aside")])
      squat(folder);
    lab.reopen();
    expect(pins()).toMatchObject(before);
    expect(pinnedAt(join(lab.bpffs, "aside_1"))).toMatchObject({ kind: "map", name: "squatter" });
    expect(aside().length).toBe(2);
    await expectGoverned();
    rmSync(join(lab.bpffs, "aside_1"));
    rmSync(join(lab.bpffs, "aside"), { recursive: true });
  });

  test("one that comes again and again is told, and its place is not cleared for ever", () => {
    const path = keptPin(lab.bpffs, "agents");
    lab.datapath.close();
    using ours = BpfMap.fromPin(path);
    for (let times = 1; times <= 8; times++) {
      squat(path);
      lab.reopen();
      expect(aside().length).toBe(times);
      lab.datapath.close();
    }
    squat(path);
    expect(() => Datapath.open(lab.options)).toThrow(`something pins at ${path} again and again`);
    rmSync(path);
    ours.pin(path);
    lab.reopen();
    rmSync(join(lab.bpffs, "aside"), { recursive: true });
  });

  test("what no program holds is named, and a start refused", async () => {
    // As programs of a version that did not hold the names.
    lab.datapath.close();
    for (const hook of HOOK_ORDER) rmSync(programPin(hook));
    for (const path of listPins(join(lab.bpffs, "links"))) rmSync(path);
    rmSync(keptPin(lab.bpffs, "cluster_names"));
    expect(() => Datapath.open(lab.options)).toThrow("pins are missing: cluster_names, and no program holds");
    expect(pinFaults(lab.bpffs).map(({ path }) => basename(path))).toContain("cluster_names");
    removePinned(lab.bpffs);
    lab.reopen();
    lab.publish(mesh);
    await expectGoverned();
  });

  test("a table lost for good that nobody reads is built anew", async () => {
    lab.datapath.close();
    for (const hook of HOOK_ORDER) rmSync(programPin(hook));
    for (const path of listPins(join(lab.bpffs, "links"))) rmSync(path);
    rmSync(tablePin(generation(), "slots"));
    expect(lab.reopen()).toMatchObject({ adopted: false, attached: false });
    lab.publish(mesh);
    await expectGoverned();
  });

  test("down leaves alone what is not ours", () => {
    lab.datapath.close();
    const path = linkPin(lab.bpffs, "connect4");
    const id = squat(path);
    lab.reopen();
    lab.datapath.close();
    const { removed } = removePinned(lab.bpffs);
    expect(removed).toContain(path);
    expect(listPins(lab.bpffs)).toEqual([join(lab.bpffs, "aside", "links_connect4")]);
    expect(pinnedAt(join(lab.bpffs, "aside", "links_connect4"))?.id).toBe(id);
    rmSync(lab.bpffs, { recursive: true });
    lab.reopen();
  });
});

describe.skipIf(!root)("a bpffs that is taken away", () => {
  const mountpoint = root ? mkdtempSync(join(tmpdir(), "kmesh-bpffs-")) : "";
  const bpffs = join(mountpoint, "kmesh");
  const said: string[] = [];
  let lab: DatapathLab | undefined;

  const mount = () => shell("mount", "-t", "bpf", "bpf", mountpoint);
  afterAll(async () => {
    lab?.datapath.close();
    removePinned(bpffs);
    await lab?.remove();
    spawnSync("umount", ["-l", mountpoint]);
    rmSync(mountpoint, { recursive: true });
  });

  test("unmounted, no hook goes; mounted again, empty, all is pinned there, also for the next start", async () => {
    mount();
    lab = await DatapathLab.create({ bpffs, upkeep: 50, log: (line) => said.push(line) });
    await lab.serve({ a: "172.31.7.2:8080" });
    const mesh = emptyMesh();
    addCluster(mesh, "c", [endpoint("172.31.7.2:8080")]);
    addFrontend(mesh, AT, { kind: "cluster", cluster: "c" });
    lab.publish(mesh);
    const before = listPins(bpffs);
    const storm = await lab.storm(AT);
    shell("umount", "-l", mountpoint);
    await eventually("it is missed", () =>
      said.join().includes(`the bpffs at ${bpffs} is no longer mounted`),
    );
    expect(
      lab.datapath
        .damage()
        .map(({ what }) => what)
        .join(),
    ).toContain("is no longer mounted");
    mount();
    await eventually("all is pinned again", () => listPins(bpffs).length === before.length);
    expect(lab.datapath.damage()).toEqual([]);
    lab.datapath.close();
    await Bun.sleep(200);
    lab.reopen();
    expect(lab.datapath).toMatchObject({ adopted: true, attached: true });
    expect(lab.publish(mesh)).toBe(0);
    expect((await storm.end()).errors).toEqual({});
    expect(said.join("\n")).not.toContain("attached again");
  });
});

function shell(command: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(command, args);
  if (status !== 0) throw new Error(`${command} ${args.join(" ")}: ${stderr}`);
}
