import { describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FileLock, LockHeld, lockHolder } from "./lock.ts";
import { netnsCookie } from "./netns.ts";
import { taskIdentity } from "./process.ts";

const isRoot = process.getuid?.() === 0;

/** Runs a module's text in a process of its own; gives what it printed. */
function script(text: string): Bun.Subprocess<"ignore", "pipe", "inherit"> {
  const room = (file: string): string => JSON.stringify(join(import.meta.dir, file));
  const imports = `import * as netns from ${room("netns.ts")}; import * as task from ${room("process.ts")};
    import * as lock from ${room("lock.ts")};`;
  return Bun.spawn([process.execPath, "-e", `${imports}${text}`], {
    stdout: "pipe",
    stderr: "inherit",
    stdin: "ignore",
  });
}

describe("taskIdentity", () => {
  test("names this process and no other", () => {
    const own = taskIdentity();
    expect(own?.tgid).toBe(process.pid);
    expect(own).toEqual(taskIdentity(process.pid));
    expect(own).not.toEqual(taskIdentity(process.ppid));
    expect(taskIdentity(2 ** 22 + 1)).toBeUndefined();
  });

  test("is not misled by a process's name", async () => {
    const child = Bun.spawn(["bash", "-c", "exec -a x bash -c 'echo \"a) b (c\" >/proc/self/comm; read'"], {
      stdin: "pipe",
    });
    try {
      while (!readFileSync(`/proc/${child.pid}/comm`, "utf8").startsWith("a)")) await Bun.sleep(5);
      const identity = taskIdentity(child.pid);
      expect(identity?.tgid).toBe(child.pid);
      const own = taskIdentity()?.startTicks ?? 0n;
      expect(identity?.startTicks).toBeGreaterThanOrEqual(own);
    } finally {
      child.kill();
      await child.exited;
    }
  });
});

test("execSelf starts the same executable anew, under the same pid and with the environment given", async () => {
  const next = "console.log(process.pid, process.env.MARK, process.env.HOME)";
  const child = script(`
    console.log(process.pid);
    task.execSelf(["bun", "-e", ${JSON.stringify(next)}], { MARK: "x y", HOME: undefined });
  `);
  const lines = (await new Response(child.stdout).text()).trim().split("\n");
  expect(lines).toEqual([`${child.pid}`, `${child.pid} x y undefined`]);
});

test("an orphan has no parent here, no descriptor but the three, and the signals as they are by default", async () => {
  const look = `
    const { readFileSync, readdirSync, readlinkSync, writeFileSync } = require("node:fs");
    const status = readFileSync("/proc/self/status", "utf8");
    const field = (name) => new RegExp("^" + name + ":\\\\s+(\\\\S+)", "m").exec(status)[1];
    writeFileSync(process.env.OUT, JSON.stringify({ parent: field("PPid"), blocked: field("SigBlk"), mark: process.env.MARK,
      locks: readdirSync("/proc/self/fd").flatMap((fd) => { try { return [readlinkSync("/proc/self/fd/" + fd)]; } catch { return []; } }).filter((path) => path.includes("orphan-lock")) }));
  `;
  const folder = mkdtempSync(join(tmpdir(), "kmesh-orphan-"));
  const lock = join(folder, "orphan-lock");
  const out = join(folder, "out");
  const child = script(`
    lock.FileLock.acquire(${JSON.stringify(lock)});
    const it = task.spawnOrphan(process.execPath, ["bun", "-e", ${JSON.stringify(look)}], { MARK: "x", OUT: ${JSON.stringify(out)} });
    console.log(it.tgid, task.isLiving(it), task.isLiving({ ...it, startTicks: it.startTicks + 1n }));
    while (task.isLiving(it)) await Bun.sleep(5);
    try { task.spawnOrphan("/does/not/exist", ["x"], {}); } catch (error) { console.log(String(error)); }
  `);
  const lines = (await new Response(child.stdout).text()).trim().split("\n");
  expect(lines[0]).toMatch(/^\d+ true false$/);
  expect(lines[1]).toContain("execve(/does/not/exist): ENOENT");
  const seen = JSON.parse(readFileSync(out, "utf8"));
  expect(seen).toMatchObject({ mark: "x", locks: [], blocked: "0000000000000000" });
  expect(seen.parent).not.toBe(`${child.pid}`);
  rmSync(folder, { recursive: true });
});

describe("FileLock", () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-lock-"));
  const path = join(folder, "lock");

  test("is held by one at a time, and names the holder", () => {
    const lock = FileLock.acquire(path);
    try {
      expect(lockHolder(path)).toBe(process.pid);
      expect(() => FileLock.acquire(path)).toThrow(new LockHeld(path, process.pid));
    } finally {
      lock.release();
    }
    expect(lockHolder(path)).toBeUndefined();
    FileLock.acquire(path).release();
  });

  test("ends with its holder, however that ends", async () => {
    const child = script(
      `lock.FileLock.acquire(${JSON.stringify(path)}); console.log("held"); setTimeout(() => {}, 60000);`,
    );
    try {
      const reader = child.stdout.getReader();
      await reader.read();
      expect(() => FileLock.acquire(path)).toThrow(`${path} is locked by pid ${child.pid}`);
    } finally {
      child.kill("SIGKILL");
      await child.exited;
    }
    FileLock.acquire(path).release();
    rmSync(folder, { recursive: true });
  });

  test("says which file can't be had", () => {
    expect(() => FileLock.acquire("/proc/none/lock")).toThrow("open(/proc/none/lock): ENOENT");
  });
});

describe.skipIf(!isRoot)("network namespaces", () => {
  test("a new one has a working loopback, a cookie of its own, and is not the first", async () => {
    const child = script(`
      netns.unshareNetns();
      netns.loopbackUp();
      console.log(String(netns.netnsCookie()), netns.isInitialNetns());
      for (const host of ["127.0.0.1", "::1"]) {
        const server = Bun.serve({ hostname: host, port: 0, fetch: () => new Response("hello") });
        const url = "http://" + (host === "::1" ? "[::1]" : host) + ":" + server.port;
        console.log(await (await fetch(url)).text());
        server.stop(true);
      }
    `);
    const [first, ...rest] = (await new Response(child.stdout).text()).trim().split("\n");
    const [cookie, initial] = first?.split(" ") ?? [];
    expect(cookie).not.toBe(String(netnsCookie()));
    expect(initial).toBe("false");
    expect(rest).toEqual(["hello", "hello"]);
  });
});
