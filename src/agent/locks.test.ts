import { afterEach, describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LockHeld } from "../kernel/lock.ts";
import { Locks } from "./locks.ts";

const root = process.getuid?.() === 0;
const folder = mkdtempSync(join(tmpdir(), "kmesh-locks-"));
const folders = {
  runDir: join(folder, "run"),
  stateDir: join(folder, "state"),
  bpffs: join(folder, "none"),
};

function mount(...args: string[]): void {
  const { status, stderr } = spawnSync("mount", args);
  if (status !== 0) throw new Error(String(stderr));
}

afterEach(() => {
  spawnSync("umount", [folders.stateDir]);
  rmSync(folder, { recursive: true, force: true });
});

describe.skipIf(!root)("the locks of a state folder that takes no file", () => {
  test.each(["read-only", "full"])("%s: one agent takes them all the same, and no second", (how) => {
    for (const path of [folders.runDir, folders.stateDir]) mkdirSync(path, { recursive: true });
    const options = how === "full" ? "size=4k,nr_inodes=2" : "ro";
    mount("-t", "tmpfs", "-o", options, "tmpfs", folders.stateDir);
    if (how === "full") writeFileSync(join(folders.stateDir, "other"), "");
    const locks = Locks.acquire(folders);
    const again = { ...folders, runDir: folders.stateDir };
    expect(() => Locks.acquire(again)).toThrow(LockHeld);
    locks.release();
    Locks.acquire(again).release();
  });
});

test("of two that start at the same moment one wins, and the other learns its pid", async () => {
  const modules = [join(import.meta.dirname, "locks.ts"), join(import.meta.dirname, "../kernel/lock.ts")].map(
    (path) => JSON.stringify(path),
  );
  const script = `const { Locks } = await import(${modules[0]}); const { LockHeld } = await import(${modules[1]});
    try { Locks.acquire(${JSON.stringify(folders)}); console.log("won"); await Bun.stdin.text(); }
    catch (error) { if (!(error instanceof LockHeld)) throw error; console.log(error.pid); }`;
  for (let round = 0; round < 10; round++) {
    for (const path of [folders.runDir, folders.stateDir]) mkdirSync(path, { recursive: true });
    const both = [0, 1].map(() => Bun.spawn([process.execPath, "-e", script], { stdin: "pipe" }));
    const words = await Promise.all(
      both.map(async (each) => {
        const { value } = await each.stdout.getReader().read();
        return new TextDecoder().decode(value).trim();
      }),
    );
    const winner = both[words.indexOf("won")];
    expect(words.sort()).toEqual([String(winner?.pid), "won"].sort());
    for (const each of both) each.stdin.end();
    await Promise.all(both.map((each) => each.exited));
  }
}, 30_000);

test("a command that has them briefly tells no pid", () => {
  mkdirSync(folders.runDir, { recursive: true });
  const locks = Locks.acquireBriefly(folders);
  expect(() => Locks.acquire(folders)).toThrow(/another process/);
  locks.release();
  Locks.acquire(folders).release();
});

describe("folders that are removed under an agent", () => {
  test("are locked again when they are there again, unless another agent was faster", () => {
    for (const path of [folders.runDir, folders.stateDir]) mkdirSync(path, { recursive: true });
    const locks = Locks.acquire(folders);
    expect(locks.renew()).toEqual([]);
    rmSync(folders.runDir, { recursive: true });
    expect(locks.renew()).toEqual([]);
    mkdirSync(folders.runDir);
    rmSync(join(folders.stateDir, "agent.lock"));
    expect(locks.renew()).toEqual([folders.runDir, folders.stateDir]);
    expect(() => Locks.acquire(folders)).toThrow(LockHeld);
    expect(locks.renew()).toEqual([]);

    rmSync(folders.runDir, { recursive: true });
    mkdirSync(folders.runDir);
    const other = Locks.acquire({ ...folders, stateDir: folders.bpffs });
    expect(locks.lockedElsewhere()).toBeInstanceOf(LockHeld);
    expect(() => locks.renew()).toThrow(LockHeld);
    other.release();
    expect(locks.lockedElsewhere()).toBeUndefined();
    expect(locks.renew()).toEqual([folders.runDir]);
    locks.release();
    Locks.acquire(folders).release();
  });
});
