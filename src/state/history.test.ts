import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { bootId, causeOfStart, type Entry, historyFile, readHistory, remember } from "./history.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-history-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const start = { kind: "start", to: "1", result: "done", pid: 7 } as const;

test("what is remembered is read, in order, with its time and boot", () => {
  remember(folder, { ...start, cause: "first start" });
  remember(folder, { kind: "restart", from: "1", to: "2", result: "done", pid: 8, gap_ms: 3 });
  const entries = readHistory(folder);
  expect(entries.map(({ kind }) => kind)).toEqual(["start", "restart"]);
  expect(entries[0]?.boot).toBe(bootId());
  expect(Math.abs(Date.parse(entries[1]?.at ?? "") - Date.now())).toBeLessThan(5_000);
  expect(statSync(historyFile(folder)).mode & 0o777).toBe(0o600);
});

test("it does not grow for ever", () => {
  for (let pid = 0; pid < 230; pid++) remember(folder, { kind: "stop", from: "1", result: "done", pid });
  const entries = readHistory(folder);
  expect(entries.length).toBe(200);
  expect(entries.at(-1)?.pid).toBe(229);
  expect(entries[0]?.pid).toBe(30);
});

test("crashes one after the other are one entry", () => {
  for (let pid = 0; pid < 5; pid++) remember(folder, { ...start, cause: "crash", pid });
  expect(readHistory(folder)).toMatchObject([{ cause: "crash", times: 5, pid: 4 }]);
  remember(folder, { ...start, to: "2", cause: "crash" });
  expect(readHistory(folder).length).toBe(2);
});

test("a file that is none is begun anew; a folder that takes nothing is an error", () => {
  for (const text of [
    "",
    "{",
    "[]",
    '{"version":9,"entries":[{"at":"","kind":"start","result":"done"}]}',
    "null",
  ]) {
    writeFileSync(historyFile(folder), text);
    expect(readHistory(folder)).toEqual([]);
  }
  remember(folder, start);
  expect(JSON.parse(readFileSync(historyFile(folder), "utf8")).entries.length).toBe(1);
  expect(() => remember(join(folder, "missing"), start)).toThrow("ENOENT");
});

test("why an agent starts is told by what the one before left", () => {
  const at = (entry: Partial<Entry>): Entry => ({ at: "", boot: "b", ...start, ...entry });
  expect(causeOfStart([], "b")).toEqual({ cause: "first start" });
  expect(causeOfStart([at({})], "b")).toEqual({ cause: "crash", from: "1" });
  expect(causeOfStart([at({})], "c")).toEqual({ cause: "reboot", from: "1" });
  const upgraded = at({ kind: "upgrade", from: "1", to: "2" });
  const refused = at({ kind: "upgrade", from: "2", to: "3", result: "failed" });
  expect(causeOfStart([at({}), upgraded, refused], "b")).toEqual({ cause: "crash", from: "2" });
  expect(causeOfStart([upgraded, at({ kind: "stop" })], "c")).toEqual({ cause: "stopped", from: "2" });
});
