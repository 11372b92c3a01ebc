/** Systemd units enrolled by name: real connections from cgroups that are named as systemd names them. */

import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, rmdirSync } from "node:fs";
import { basename, dirname } from "node:path";
import { keptPin } from "../../src/datapath/generation/pins.ts";
import { findUnits, LONGEST_UNIT } from "../../src/datapath/tables/unit.ts";
import { cgroupId } from "../../src/kernel/cgroup.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { cgroup2Mount, ownName, removeCgroup } from "../lab/namespace.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("unit tests of the data path are skipped: they need root");

const VIP = "10.96.0.1:80";

describe.skipIf(!root)("units by name", () => {
  // A name that no real unit of the machine has.
  const own = ownName("u");
  const slice = `${cgroup2Mount()}/${own}.slice`;
  const web = `${own}-web.service`;
  let lab: DatapathLab;

  beforeAll(async () => {
    lab = await DatapathLab.create({ cgroups: [] });
    await lab.serve({ a: "172.31.1.1:8080" });
    const mesh = emptyMesh();
    addFrontend(mesh, VIP, { kind: "cluster", cluster: "c" });
    addCluster(mesh, "c", [endpoint("172.31.1.1:8080")]);
    lab.publish(mesh);
  });
  afterEach(async () => {
    await removeCgroup(slice);
  });
  afterAll(async () => {
    await lab?.remove();
  });

  /** Enrols these units and nothing else. */
  function enrol(...units: string[]): void {
    lab.datapath.govern({ ...lab.options, units });
  }

  /** The cgroup of that path below the slice, made where it is missing. */
  function cgroup(path: string): string {
    mkdirSync(`${slice}/${path}`, { recursive: true });
    return `${slice}/${path}`;
  }

  /** Whether an app in a cgroup is governed: the service's address leads nowhere without it. */
  async function governed(folder: string): Promise<boolean> {
    const tally = await lab.connect(VIP, {}, folder);
    expect(tally.made === 1 ? tally.by : tally.errors).toEqual(
      tally.made === 1 ? { a: 1 } : { ENETUNREACH: 1 },
    );
    return tally.made === 1;
  }

  test("a unit is governed by its name, at once, and no longer when it is taken out", async () => {
    const folder = cgroup(web);
    expect(await governed(folder)).toBe(false);
    enrol(web);
    expect(await governed(folder)).toBe(true);
    expect(await governed(cgroup(`${own}-other.service`))).toBe(false);
    expect(await governed(`${slice}`)).toBe(false);
    enrol();
    expect(await governed(folder)).toBe(false);
  });

  test("made anew while nobody runs it is governed from its first connection on", async () => {
    enrol(web);
    const folder = cgroup(web);
    expect(await governed(folder)).toBe(true);
    const before = cgroupId(folder);
    lab.datapath.close();
    try {
      rmdirSync(folder);
      cgroup(web);
      expect(cgroupId(folder)).not.toBe(before);
      expect(await governed(folder)).toBe(true);
      await removeCgroup(slice);
      expect(await governed(cgroup(`${own}-elsewhere.slice/${web}`))).toBe(true);
    } finally {
      lab.reopen({ units: [web] });
    }
  });

  test("slices may lie in slices, and a slice may be enrolled itself", async () => {
    const deep = cgroup(`${own}-a.slice/${own}-a-b.slice/${web}`);
    enrol(web);
    expect(await governed(deep)).toBe(true);
    enrol(`${own}-a.slice`);
    expect(await governed(deep)).toBe(true);
    expect(await governed(dirname(deep))).toBe(true);
    expect(await governed(cgroup(web))).toBe(false);
  });

  test("what lies below a unit belongs to it, whatever its name is", async () => {
    enrol(web);
    expect(await governed(cgroup(`${web}/payload/inner.service`))).toBe(true);
    expect(await governed(cgroup(`${own}-container.service/${web}`))).toBe(false);
    expect(await governed(cgroup(`${own}-user.service/app.slice/${web}`))).toBe(false);
  });

  test("only the whole name counts", async () => {
    enrol(web);
    for (const other of [`${web}2`, web.slice(0, -1), `x${web}`, web.replace("web", "WEB")])
      expect(await governed(cgroup(other))).toBe(false);
    // systemd marks names that the kernel might take for its own files.
    expect(await governed(cgroup(`_${web}`))).toBe(true);
    expect(await governed(cgroup(`__${web}`))).toBe(false);
  });

  test("the longest name is told from longer ones", async () => {
    const name = (length: number) => `${own}-`.padEnd(length - ".service".length, "x").concat(".service");
    const longest = name(LONGEST_UNIT);
    enrol(longest);
    expect(await governed(cgroup(longest))).toBe(true);
    // systemd takes 255. Their first characters are the enrolled unit's.
    for (const length of [LONGEST_UNIT + 1, LONGEST_UNIT + 2, 200, 255])
      expect(await governed(cgroup(longest.padEnd(length, "y")))).toBe(false);
    expect(await governed(cgroup(`${name(255)}/${longest}`))).toBe(false);
  });

  test("a verdict is good for its own cgroup and its own time only", async () => {
    const folder = cgroup(web);
    const verdicts = pinned("verdicts");
    const enrolment = pinned("enrolment");
    enrol(web);
    enrol();
    expect(await governed(folder)).toBe(false);
    const at = Number(cgroupId(folder) % BigInt(verdicts.length));
    const ours = verdicts[at] ?? 0n;
    expect(ours >> 16n).toBe(cgroupId(folder));
    // Another cgroup that shares its place, and is governed.
    verdicts[at] = (ours | 1n) + (BigInt(verdicts.length) << 16n);
    expect(await governed(folder)).toBe(false);
    // Its own verdict of another epoch.
    verdicts[at] = (ours | 1n) ^ 2n;
    expect(await governed(folder)).toBe(false);
    expect(verdicts[at]).toBe(ours);
    // As many changes later as an epoch has numbers, the old verdicts are gone.
    enrolment[0] = 0x8000n;
    enrol(web);
    expect(await governed(folder)).toBe(true);
    enrolment[0] = 0x10000n;
    enrol();
    enrolment[0] = 0xffffn;
    verdicts[at] = (cgroupId(folder) << 16n) | 1n;
    enrol(`${own}-other.service`);
    expect(enrolment[0]).toBe(0x10000n);
    expect(await governed(folder)).toBe(false);
  });

  test("another start with the same units writes nothing, and status finds them", async () => {
    enrol(web);
    const folder = cgroup(web);
    const enrolment = pinned("enrolment");
    const epoch = enrolment[0];
    lab.reopen({ units: [web] });
    expect(enrolment[0]).toBe(epoch);
    expect(lab.datapath.summarize().settings?.units).toEqual([
      { unit: web, cgroup: folder, populated: false },
    ]);
    await removeCgroup(slice);
    expect(lab.datapath.summarize().settings?.units).toEqual([{ unit: web, populated: false }]);
    const inside = `${own}-c.service/${basename(folder)}`;
    cgroup(inside);
    expect(findUnits(cgroup2Mount(), [web])).toEqual([{ unit: web, populated: false }]);
  });

  test("a cgroup that is enrolled by its path is governed whatever lies between", async () => {
    const deep = cgroup(`plain/${web}/x/y`);
    lab.datapath.govern({ ...lab.options, cgroups: [`${slice}/plain`] });
    expect(await governed(deep)).toBe(true);
    expect(await governed(cgroup("other"))).toBe(false);
    lab.datapath.govern({ ...lab.options, cgroups: [] });
    expect(await governed(deep)).toBe(false);
  });

  function pinned(name: string): BigUint64Array {
    const map = BpfMap.fromPin(keptPin(lab.bpffs, name));
    try {
      return new BigUint64Array(map.mmap());
    } finally {
      map.close();
    }
  }
});
