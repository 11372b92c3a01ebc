import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { replaceFile } from "./replace-file.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-replace-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("mode, folders and content; a leftover of a killed writer is replaced", () => {
  const path = join(folder, "deep/er/file");
  mkdirSync(join(folder, "deep/er"), { recursive: true });
  writeFileSync(`${path}.new`, "left behind by a killed writer, and longer");
  replaceFile(path, "one", { mode: 0o640, folderMode: 0o700, durable: true });
  replaceFile(join(folder, "made/it"), Buffer.from("two"), { mode: 0o600, folderMode: 0o700 });
  expect([readFileSync(path, "utf8"), statSync(path).mode & 0o777]).toEqual(["one", 0o640]);
  expect([
    readFileSync(join(folder, "made/it"), "utf8"),
    statSync(join(folder, "made")).mode & 0o777,
  ]).toEqual(["two", 0o700]);
  expect(readdirSync(join(folder, "deep/er"))).toEqual(["file"]);
});

test("the hooks run in order, and an error before the rename leaves the old file alone", () => {
  const path = join(folder, "steps");
  const seen: string[] = [];
  const hooks = {
    onHalf: () => seen.push(`half ${statSync(`${path}.new`).size}`),
    onWritten: () => seen.push("written"),
    onRenamed: () => seen.push("renamed"),
  };
  replaceFile(path, "123456", { mode: 0o600, ...hooks });
  expect(seen).toEqual(["half 3", "written", "renamed"]);
  const failing = () => {
    throw new Error("no");
  };
  expect(() => replaceFile(path, "other", { mode: 0o600, onWritten: failing })).toThrow("no");
  expect(readFileSync(path, "utf8")).toBe("123456");
  expect(readdirSync(folder)).not.toContain("steps.new");
});

test("an error of the file system leaves the old file, and nothing beside it", () => {
  const path = join(folder, "kept");
  replaceFile(path, "old", { mode: 0o600 });
  expect(() => replaceFile(join(path, "below"), "x", { mode: 0o600 })).toThrow("ENOTDIR");
  // A folder has the file's name: the write succeeds and only the rename fails.
  mkdirSync(join(folder, "folder"));
  expect(() => replaceFile(join(folder, "folder"), "x", { mode: 0o600 })).toThrow("EISDIR");
  expect(readFileSync(path, "utf8")).toBe("old");
  expect(readdirSync(folder).filter((name) => name.endsWith(".new"))).toEqual([]);
});
