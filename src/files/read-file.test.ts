import { afterAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readRegularFile, readTextFile } from "./read-file.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-read-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("a regular file of any size up to the limit, also of /proc, which has none", () => {
  const path = join(folder, "file");
  for (const length of [0, 1, 65_535, 65_536, 65_537, 200_000]) {
    writeFileSync(path, "x".repeat(length));
    expect(readTextFile(path, 200_000)).toBe("x".repeat(length));
  }
  expect(readTextFile("/dev/null")).toBe("");
  expect(readTextFile("/proc/self/status")).toContain("Name:");
});

test("what would hang or never end is refused at once, by its kind", () => {
  const pipe = join(folder, "pipe");
  expect(spawnSync("mkfifo", [pipe]).status).toBe(0);
  const large = join(folder, "large");
  writeFileSync(large, "");
  truncateSync(large, 2 ** 40);
  const cases: [string, string][] = [
    [pipe, "it is a named pipe, not a regular file"],
    ["/dev/zero", "it is a device, not a regular file"],
    [folder, "it is a folder, not a regular file"],
    [large, "it is larger than 1 MiB"],
    [join(folder, "none"), "ENOENT"],
  ];
  const before = performance.now();
  for (const [path, reason] of cases) expect(() => readRegularFile(path)).toThrow(reason);
  expect(performance.now() - before).toBeLessThan(1_000);
});
