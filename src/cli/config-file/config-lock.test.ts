import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ConfigLock } from "./config-lock.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-lock-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test("the second waits for the first, by whatever name", async () => {
  const [path, link] = [join(folder, "config.yaml"), join(folder, "elsewhere/link.yaml")];
  writeFileSync(path, "");
  const first = await ConfigLock.acquire(path);
  const other = await ConfigLock.acquire(link);
  symlinkSync(path, link);
  const order: string[] = [];
  const waiting = ConfigLock.acquire(link).then((lock) => {
    order.push("second");
    return lock;
  });
  await new Promise((done) => setTimeout(done, 60));
  order.push("first ends");
  first.release();
  (await waiting).release();
  other.release();
  expect(order).toEqual(["first ends", "second"]);
});

test("who waits for too long is told, and nothing is left of a folder that was made for nothing", async () => {
  const path = join(folder, "etc/config.yaml");
  const first = await ConfigLock.acquire(path);
  expect(ConfigLock.acquire(path, 50)).rejects.toThrow(`has been writing ${path} for 0.05 s`);
  await new Promise((done) => setTimeout(done, 150));
  first.release();
  first.release();
  expect(existsSync(join(folder, "etc"))).toBe(false);
});
