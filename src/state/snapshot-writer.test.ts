import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { addCluster, endpoint } from "../../test/datapath/mesh.ts";
import { eventually, sleep } from "../../test/lab/process.ts";
import { emptyMesh, type Mesh } from "../mesh/model.ts";
import { readSnapshot, snapshotFile } from "./snapshot.ts";
import { type Pace, SnapshotKeeper } from "./snapshot-writer.ts";

const MACHINE = "0123456789abcdef0123456789abcdef";
const PACE: Pace = { quiet: 30, patience: 200, pause: 50, rate: 1_000, retry: 50, pending: 60_000 };

let folder: string;
let warnings: string[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-keeper-"));
  warnings = [];
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const remarks = { warn: (text: string) => void warnings.push(text), debug: () => {} };

function keeper({ pace = PACE, at = folder } = {}): SnapshotKeeper {
  return new SnapshotKeeper(at, MACHINE, { namespace: "a" }, remarks, { pace });
}

function meshOf(clusters: number): Mesh {
  const mesh = emptyMesh();
  for (let i = 0; i < clusters; i++) addCluster(mesh, `c${i}`, [endpoint("10.0.0.1:80")]);
  return mesh;
}

const clusters = (at = folder) => readSnapshot(at, { machine: MACHINE })?.mesh.clusters.size;

test("what is told is read by the next one", async () => {
  const one = keeper();
  expect(one.load()).toBeUndefined();
  one.changed(meshOf(3));
  expect(existsSync(snapshotFile(folder))).toBe(false);
  await eventually("it is written", () => clusters() === 3);
  expect(keeper().load()?.mesh).toEqual(meshOf(3));
  one.close();
  expect(warnings).toEqual([]);
});

test("a mesh with pending parts does not replace a whole one before its time", async () => {
  const whole = keeper();
  whole.changed(meshOf(3));
  whole.close();
  expect(clusters()).toBe(3);
  const pending = (count: number): Mesh => ({
    ...meshOf(count),
    pending: { ports: "all", fallback: true },
  });
  const patient = keeper();
  patient.changed(pending(1));
  await sleep(300);
  await patient.flush();
  patient.close();
  expect(clusters()).toBe(3);
  const again = keeper();
  again.changed(pending(1));
  await sleep(100);
  again.changed(meshOf(2));
  await eventually("the whole one is written", () => clusters() === 2);
  again.close();
  const short = keeper({ pace: { ...PACE, pending: 150 } });
  short.changed(pending(1));
  await eventually("it is written after that time", () => clusters() === 1);
  short.close();
});

test("it waits for quiet, though not for ever, and rests between two writes", async () => {
  const one = keeper({ pace: { ...PACE, quiet: 60, patience: 150, pause: 150 } });
  const inodes = new Set<number>();
  const start = performance.now();
  for (let i = 1; performance.now() - start < 700; i++) {
    one.changed(meshOf(i));
    await sleep(10);
    if (existsSync(snapshotFile(folder))) inodes.add(statSync(snapshotFile(folder)).mtimeMs);
  }
  expect(inodes.size).toBeGreaterThanOrEqual(2);
  expect(inodes.size).toBeLessThanOrEqual(5);
  one.close();
});

test("a large mesh is written in slices; changes during that are in the next", async () => {
  const mesh = meshOf(20_000);
  const one = keeper();
  one.changed(mesh);
  let changed = false;
  let turns = 0;
  const turn = () => {
    if (existsSync(`${snapshotFile(folder)}.new`)) turns++;
    if (!existsSync(snapshotFile(folder))) setImmediate(turn);
  };
  turn();
  await eventually("both are written", async () => {
    if (!changed && existsSync(`${snapshotFile(folder)}.new`)) {
      changed = true;
      mesh.clusters.delete("c0");
      one.changed(mesh);
    }
    return existsSync(snapshotFile(folder)) && clusters() === 19_999;
  });
  expect(changed).toBe(true);
  one.close();
  expect(warnings).toEqual([]);
  // Others got their turns while it was written.
  expect(turns).toBeGreaterThan(3);
});

test("close writes what waits, also in the middle of a write, and nothing after it", async () => {
  const one = keeper();
  one.changed(meshOf(2));
  one.close();
  expect(clusters()).toBe(2);

  const mesh = meshOf(20_000);
  const other = keeper();
  other.changed(mesh);
  await eventually("it is being written", () => existsSync(`${snapshotFile(folder)}.new`), 5_000, 1);
  mesh.clusters.delete("c0");
  other.close();
  expect(clusters()).toBe(19_999);
  const written = statSync(snapshotFile(folder)).mtimeMs;
  other.changed(meshOf(1));
  await sleep(200);
  expect(statSync(snapshotFile(folder)).mtimeMs).toBe(written);
  expect(readdirSync(folder)).toEqual(["snapshot"]);
  expect(warnings).toEqual([]);
});

test("a mesh that could not be made live is not written", async () => {
  const mesh = meshOf(2);
  const one = keeper();
  one.changed(mesh);
  mesh.clusters.delete("c0");
  one.hold();
  await sleep(100);
  expect(readdirSync(folder)).toEqual([]);
  one.changed(mesh);
  await eventually("it is written", () => clusters() === 1);
  mesh.clusters.clear();
  one.changed(mesh);
  one.hold();
  one.close();
  expect(clusters()).toBe(1);
});

test("without anything new, close leaves the file alone", async () => {
  const one = keeper();
  one.changed(meshOf(2));
  await eventually("it is written", () => clusters() === 2);
  const { mtimeMs, ino } = statSync(snapshotFile(folder));
  one.close();
  one.changed(meshOf(3));
  await sleep(150);
  expect(statSync(snapshotFile(folder))).toMatchObject({ mtimeMs, ino });
});

test("one that can't be used is set aside with one line", () => {
  writeFileSync(snapshotFile(folder), "not this");
  expect(keeper().load()).toBeUndefined();
  expect(warnings).toHaveLength(1);
  expect(warnings[0]).toContain("it is cut off");
  expect(warnings[0]).toContain(`${snapshotFile(folder)}.bad`);
  expect(readFileSync(`${snapshotFile(folder)}.bad`, "utf8")).toBe("not this");
  expect(keeper().load()).toBeUndefined();
  expect(warnings).toHaveLength(1);
});

test("without a machine id nothing is read or written, and it is said", async () => {
  const one = new SnapshotKeeper(folder, undefined, {}, remarks, { pace: PACE });
  one.changed(meshOf(2));
  await sleep(100);
  one.close();
  expect(one.load()).toBeUndefined();
  expect(readdirSync(folder)).toEqual([]);
  expect(warnings).toEqual([expect.stringContaining("/etc/machine-id")]);
});

test("a folder that was lost is made again", async () => {
  const one = keeper();
  rmSync(folder, { recursive: true });
  one.changed(meshOf(2));
  await eventually("it is written", () => clusters() === 2);
  expect(statSync(folder).mode & 0o777).toBe(0o700);
  one.close();
});

describe("a disk that does not take it", () => {
  test("is told of once, tried again, and of use when it is better", async () => {
    const at = join(folder, "state");
    writeFileSync(at, "in the way");
    const one = keeper({ at });
    one.changed(meshOf(2));
    await sleep(300);
    one.changed(meshOf(3));
    await sleep(100);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain("can't be written");
    rmSync(at);
    await eventually("it is written", () => existsSync(at) && clusters(at) === 3);
    one.close();
  });

  test.skipIf(process.getuid?.() !== 0)(
    "full: one line, the old snapshot stays, nothing half is left",
    async () => {
      execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]);
      try {
        const one = keeper();
        one.changed(meshOf(10));
        await eventually("it is written", () => clusters() === 10);
        one.changed(meshOf(20_000));
        await eventually("it is told", () => warnings.length > 0);
        await sleep(200);
        one.close();
        expect(warnings).toEqual([expect.stringContaining("ENOSPC")]);
        expect(one.trouble).toContain("ENOSPC");
        expect(clusters()).toBe(10);
        expect(readdirSync(folder)).toEqual(["snapshot"]);
        execFileSync("mount", ["-o", "remount,ro", folder]);
        const other = keeper();
        expect(other.load()?.mesh.clusters.size).toBe(10);
        other.changed(meshOf(5));
        other.close();
        expect(warnings[1]).toContain("EROFS");
        expect(clusters()).toBe(10);
      } finally {
        execFileSync("umount", ["-l", folder]);
      }
    },
  );
});

test("nothing is written, not at the end either, while another agent owns the file", async () => {
  let owned = true;
  const one = new SnapshotKeeper(folder, MACHINE, { namespace: "a" }, remarks, {
    pace: PACE,
    owns: () => owned,
  });
  one.changed(meshOf(1));
  await eventually("it is written", () => clusters() === 1);
  owned = false;
  one.changed(meshOf(2));
  await sleep(150);
  await one.flush();
  one.close();
  expect(clusters()).toBe(1);
  expect(readdirSync(folder).filter((name) => name.endsWith(".new"))).toEqual([]);
});
