/** Programs on trial: what works takes the hooks over, what does not changes nothing and leaves nothing behind. */

import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { generationFolder, HOOK_ORDER, keptPin, linkPin } from "../../src/datapath/generation/pins.ts";
import { type Code, ownCode } from "../../src/datapath/generation/programs.ts";
import { SelfTestFailed, selfTest } from "../../src/datapath/generation/self-test.ts";
import { summarizePinned } from "../../src/datapath/inspect/inspect.ts";
import { cgroup2Root, ownCgroup } from "../../src/kernel/cgroup.ts";
import { fetchAtomics } from "../../src/kernel/features.ts";
import { CgroupLink } from "../../src/kernel/link.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { emptyMesh, type Mesh } from "../../src/mesh/model.ts";
import { run } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("probe tests are skipped: they need root");

const OTHER = "0123456789abcdef";
const A = "172.31.1.1:8080";
const B = "172.31.1.2:8080";

/** One service at 10.96.0.1, and whatever has no service is refused: also to a probe, if anybody governed it. */
function meshOf(...endpoints: string[]): Mesh {
  const mesh = emptyMesh();
  addFrontend(mesh, "10.96.0.1:80", { kind: "cluster", cluster: "one" }, "one:80");
  addCluster(
    mesh,
    "one",
    endpoints.map((at) => endpoint(at)),
  );
  return { ...mesh, fallback: { kind: "refuse", reason: "not-in-registry" } };
}

/** This build's programs, but for connect.bpf.o: dist/test/NAME.bpf.o. */
function variant(name: string): Code {
  const { images } = ownCode();
  const path = `../../dist/test/${name}${fetchAtomics() ? "" : ".compat"}.bpf.o`;
  return {
    images: [readFileSync(join(import.meta.dirname, path)), ...images.slice(1)],
    hash: `code${name}`,
  };
}

describe.skipIf(!root)("a probe", () => {
  let lab: DatapathLab;
  let said: string[] = [];
  const home = ownCgroup() ?? cgroup2Root();
  beforeAll(async () => {
    lab = await DatapathLab.create({ log: (line) => said.push(line) });
    await lab.serve({ a: A, b: B });
    // Governed itself, so that only the exemption keeps its probes out.
    writeFileSync(join(lab.cgroup, "cgroup.procs"), `${process.pid}`);
  });
  afterEach(() => {
    lab.reopen();
    lab.publish(meshOf(A));
    for (const layout of lab.datapath.kept) lab.datapath.removeKept(layout);
    said = [];
  });
  afterAll(async () => {
    writeFileSync(join(home, "cgroup.procs"), `${process.pid}`);
    await lab?.remove();
  });

  /** All programs that the hooks run. */
  function hooks(): number[] {
    return HOOK_ORDER.map((hook) => {
      using link = CgroupLink.fromPin(linkPin(lab.bpffs, hook));
      return link.info().programId;
    });
  }

  /** What a probe might leave: cgroups, exempt processes, pins, numbers. */
  function traces() {
    using agents = BpfMap.fromPin(keptPin(lab.bpffs, "agents"));
    const own = ownCgroup() ?? "";
    const cgroups = [own, cgroup2Root()].flatMap((folder) => readdirSync(folder));
    const { services } = summarizePinned(lab.bpffs);
    return {
      cgroups: cgroups.filter((name) => name === `kmesh-probe-${process.pid}`),
      exempt: agents.entries().count,
      pins: readdirSync(lab.bpffs, { recursive: true, encoding: "utf8" }).sort(),
      services: services.map(({ service, redirected, refused }) => ({ service, redirected, refused })),
    };
  }

  /** The kernel's maps of this name, whoever holds them. */
  function mapsHeld(): number {
    let count = 0;
    for (const fd of readdirSync("/proc/self/fd")) {
      try {
        if (/map_type/.test(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))) count++;
      } catch {
        // It was the one that lists the folder.
      }
    }
    return count + readFileSync("/proc/self/maps", "utf8").split("bpf-map").length;
  }

  /** What this version has made becomes another one's, under the eyes of its readers. */
  function disown(): void {
    lab.datapath.close();
    rmSync(generationFolder(lab.bpffs, OTHER), { recursive: true, force: true });
    renameSync(generationFolder(lab.bpffs), generationFolder(lab.bpffs, OTHER));
  }

  test("programs that work take over from another version's tables, and nothing of the trial is left", async () => {
    lab.publish(meshOf(A));
    expect(said.join()).not.toContain("trial");
    disown();
    lab.reopen();
    const storm = await lab.storm("10.96.0.1:80");
    const before = traces();
    const maps = mapsHeld();
    const running = hooks();
    lab.publish(meshOf(A));
    const { made, errors } = await storm.end();
    expect(said.join()).toMatch(/led connections right on trial \(\d+ ms\)/);
    expect(hooks().filter((id) => running.includes(id))).toEqual([]);
    expect(errors).toEqual({});
    const after = traces();
    expect(after).toMatchObject({ cgroups: [], exempt: before.exempt, pins: before.pins });
    expect(after.services.map(({ service }) => service)).toEqual(
      before.services.map(({ service }) => service),
    );
    expect(refusals(after)).toBe(refusals(before));
    expect(redirects(after)).toBe(made);
    // Tables grow with a mesh; the trial's own would be twenty.
    expect(mapsHeld() - maps).toBeLessThan(20);
    expect((await lab.connect("10.96.0.1:80", { count: 2 })).by).toEqual({ a: 2 });
  });

  for (const [name, what] of [
    ["astray", /a connection to 192\.0\.2\.1 port 80, which they were to lead to 127\.0\.0\.1: connect: E/],
    ["uncounted", /192\.0\.2\.1 port 80, .*: 0 live connections are counted, not 1/],
  ] as const) {
    test(`programs with a fault (${name}) do not take over from another version, which governs and counts on`, async () => {
      disown();
      const pins = traces().pins;
      lab.reopen({}, variant(name));
      const before = traces();
      const storm = await lab.storm("10.96.0.1:80");
      const running = hooks();
      const publish = () => lab.publish(meshOf(B));
      expect(publish).toThrow(SelfTestFailed);
      expect(publish).toThrow(what);
      expect(publish).toThrow("what governed before governs on");
      const { made, errors } = await storm.end();
      expect(errors).toEqual({});
      expect(hooks()).toEqual(running);
      const after = traces();
      expect({ ...after, services: [] }).toEqual({ ...before, services: [] });
      expect(refusals(after)).toBe(refusals(before));
      expect(redirects(after) - redirects(before)).toBe(made);
      expect((await lab.connect("10.96.0.1:80")).by).toEqual({ a: 1 });
      lab.datapath.close();
      expect(traces().pins).toEqual(pins);
    });
  }

  test("a hook that somebody detached while another version governs is shown, and attached with the flip", () => {
    lab.publish(meshOf(A));
    disown();
    lab.reopen();
    expect(lab.datapath.damage()).toEqual([]);
    {
      using link = CgroupLink.fromPin(linkPin(lab.bpffs, "sock_release"));
      link.detach();
    }
    const off = expect.stringMatching(/^sock_release is not attached: somebody detached the link/);
    expect(lab.datapath.damage()).toMatchObject([{ what: off }]);
    lab.publish(meshOf(A));
    expect(lab.datapath).toMatchObject({ attached: true, takesOver: false });
    expect(lab.datapath.damage()).toEqual([]);
  });

  test("programs with a fault over the same tables: the others go on, and these tables follow", async () => {
    lab.publish(meshOf(A));
    lab.datapath.close();
    const { pins } = traces();
    const running = hooks();
    lab.reopen({}, variant("astray"));
    expect(lab.datapath.publish(meshOf(B), { everything: true }).selfTestFailed).toBeInstanceOf(
      SelfTestFailed,
    );
    expect((await lab.connect("10.96.0.1:80")).by).toEqual({ b: 1 });
    expect(hooks()).toEqual(running);
    expect(lab.datapath.attached).toBe(false);
    lab.datapath.close();
    expect(traces().pins).toEqual(pins);
    expect(lab.reopen().attached).toBe(true);
    expect(lab.publish(meshOf(B))).toBe(0);
    expect(said.join()).not.toContain("trial");
  });

  test("other programs over the same tables take over by a trial, which does not show in these tables", async () => {
    lab.publish(meshOf(A));
    const before = traces();
    const running = hooks();
    lab.reopen({}, variant("renumbered"));
    expect(lab.publish(meshOf(A))).toBe(0);
    expect(said.join()).toContain("on trial");
    expect(hooks().filter((id) => running.includes(id))).toEqual([]);
    expect({ ...traces(), pins: [] }).toEqual({ ...before, pins: [] });
  });

  test("that finds no table of agents leaves nothing open", () => {
    const open = () => readdirSync("/proc/self/fd").length;
    const before = open();
    expect(() => selfTest(join(lab.bpffs, "none"), ownCode(), "own")).toThrow("has the map agents");
    expect(open()).toBe(before);
  });

  test("a probe that failed is not tried again with each push", () => {
    disown();
    lab.reopen({}, variant("astray"));
    const flaw = caught(() => lab.publish(meshOf(A)));
    expect(flaw).toMatchObject({ retryAfter: 5_000 });
    expect(caught(() => lab.publish(meshOf(B)))).toBe(flaw);
  });

  test("a pin with other instructions than those that were proved is not attached", () => {
    lab.publish(meshOf(A));
    lab.datapath.close();
    const running = hooks();
    // Adopted under the hash of programs that work.
    lab.reopen({}, variant("uncounted"));
    const folder = join(generationFolder(lab.bpffs), "programs");
    renameSync(join(folder, "codeuncounted"), join(folder, "othercode"));
    lab.reopen({}, { ...ownCode(), hash: "othercode" });
    expect(lab.datapath.publish(meshOf(A), { everything: true }).selfTestFailed?.message).toStartWith(
      "the programs pinned for connect4, connect6 are not those of this executable",
    );
    expect(hooks()).toEqual(running);
  });

  test("where the own cgroup takes no other, it is made below the root", () => {
    const limit = join(lab.cgroup, "cgroup.max.descendants");
    lab.publish(meshOf(A));
    disown();
    lab.reopen();
    writeFileSync(limit, "0");
    lab.publish(meshOf(A));
    writeFileSync(limit, "max");
    expect(said.join()).toContain("on trial");
    expect(traces().cgroups).toEqual([]);
  });

  test("where no cgroup can be made it is not tried, and says so", async () => {
    lab.publish(meshOf(A));
    const folder = join(import.meta.dirname, "../../src/datapath/generation");
    const script =
      `import { selfTest } from "${folder}/self-test.ts"; import { ownCode } from "${folder}/programs.ts";` +
      `console.log(selfTest("${lab.bpffs}", ownCode(), "own").untried);`;
    const remount = `mount -o remount,bind,ro ${cgroup2Root()} && exec "$0" -e '${script}'`;
    const { code, stdout, stderr } = await run(["unshare", "--mount", "sh", "-c", remount, process.execPath]);
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(/^no cgroup can be made for it \(EROFS: /);
  });

  test("cgroups of probes that died are removed, those of the living are not", () => {
    const parent = ownCgroup() ?? cgroup2Root();
    const [dead, living] = [join(parent, "kmesh-probe-4194305"), join(parent, `kmesh-probe-${process.ppid}`)];
    for (const path of [dead, living]) mkdirSync(path);
    lab.reopen();
    expect([dead, living].filter((path) => existsSync(path))).toEqual([living]);
    rmdirSync(living);
  });
});

function refusals({ services }: { services: { refused: object }[] }): number {
  return services
    .flatMap(({ refused }) => Object.values(refused) as number[])
    .reduce((all, count) => all + count, 0);
}

function redirects({ services }: { services: { redirected: number }[] }): number {
  return services.reduce((all, { redirected }) => all + redirected, 0);
}

function caught(body: () => unknown): unknown {
  try {
    body();
  } catch (error) {
    return error;
  }
  return undefined;
}
