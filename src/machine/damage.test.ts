import { afterEach, describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { damageOf } from "./damage.ts";

const root = process.getuid?.() === 0;
const folder = mkdtempSync(join(tmpdir(), "kmesh-damage-"));
const folders = {
  runDir: join(folder, "run"),
  stateDir: join(folder, "state"),
  bpffs: join(folder, "none"),
};

function mountState(options: string): void {
  for (const path of [folders.runDir, folders.stateDir]) mkdirSync(path, { recursive: true, mode: 0o700 });
  const given = ["-t", "tmpfs", "-o", `mode=700,${options}`, "tmpfs", folders.stateDir];
  const { status, stderr } = spawnSync("mount", given);
  if (status !== 0) throw new Error(String(stderr));
}

describe.skipIf(!root)("damage to the state folder", () => {
  afterEach(() => {
    spawnSync("umount", [folders.stateDir]);
    rmSync(folder, { recursive: true, force: true });
  });

  test("none where there is nothing yet, and none in a good one", () => {
    expect(damageOf(folders)).toEqual([]);
    mountState("size=64k");
    expect(damageOf(folders)).toEqual([]);
  });

  test("read-only", () => {
    mountState("ro");
    const [damage] = damageOf(folders);
    expect(damage?.what).toContain(`nothing can be written to ${folders.stateDir}: `);
    expect(damage?.what).toContain("EROFS");
    expect(damage?.cure).toContain("remount,rw");
  });

  test("full, in which the agent's own words are not told a second time", () => {
    mountState("size=4k,nr_inodes=3");
    writeFileSync(join(folders.stateDir, "other"), Buffer.alloc(4096));
    const found = damageOf(folders, "the snapshot can't be written: ENOSPC");
    expect(found).toHaveLength(1);
    expect(found[0]?.what).toContain("its disk is full");
  });

  test("a file in its place", () => {
    mkdirSync(folder, { recursive: true });
    writeFileSync(folders.stateDir, "");
    expect(damageOf(folders)[0]?.what).toContain("it is not a folder");
  });

  test("what only the agent knows", () => {
    const found = damageOf(folders, "the snapshot can't be written: EIO");
    expect(found.map(({ what }) => what)).toEqual(["the snapshot can't be written: EIO"]);
  });
});
