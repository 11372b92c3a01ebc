import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Counters, noCounters } from "./counters/rows.ts";
import { History, STEP } from "./history.ts";
import { readHistory, writeHistory } from "./history-file.ts";

const START = Date.parse("2026-01-01T00:00:00Z");
const at = (seconds: number) => START + seconds * 1000;
const folder = mkdtempSync(join(tmpdir(), "kmesh-history-"));
const path = join(folder, "history");
afterAll(() => rmSync(folder, { recursive: true }));

const counters = (opened: number): Counters => ({ ...noCounters(), opened });
/** So many edges, 10 connections more in each step. */
function recorded(edges: number, steps: number): History {
  const history = new History();
  for (let step = 0; step <= steps; step++)
    history.record(
      new Map(Array.from({ length: edges }, (_, i) => [`unit:ü${i} -> b`, counters(step * 10)] as const)),
      at(step * STEP),
    );
  return history;
}

test("a history goes on over a restart, with what was counted meanwhile", () => {
  writeHistory(path, recorded(3, 60));
  const after = readHistory(path);
  expect(after.tracks.size).toBe(3);
  expect(after.covered(at(600))).toBe(600);
  const series = (history: History) => history.series("unit:ü2 -> b", at(605));
  expect(series(after)).toEqual(series(recorded(3, 60)));
  expect(after.recent("unit:ü2 -> b", counters(700), 3600, at(640)).opened).toBe(700);
  after.record(new Map([["unit:ü2 -> b", counters(730)]]), at(640));
  expect(series(after)?.opened.at(-1)).toBe(130);
});

test("an hour of 50 edges, in pieces that are smaller", () => {
  const history = recorded(50, 360);
  writeHistory(path, history);
  expect(statSync(path).size).toBeWithin(1.1e6, 1.4e6);
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(readHistory(path)).toEqual(history);
});

test.each([
  ["nothing", ""],
  ["null", "null"],
  ["an object without a format", "{}\n"],
  ["the text that earlier versions wrote", '{"version":1,"step":10,"edges":{}}'],
  ["chunks of another size", '{"version":2,"values":1}\n'],
  ["a line without an end", "x".repeat(200_000)],
])("a file that is none: %s", (_, text) => {
  writeFileSync(path, text);
  expect(readHistory(path)).toEqual(new History());
});

test("of a file that was cut off, the edges that are whole; none without a file", () => {
  writeHistory(path, recorded(3, 5));
  writeFileSync(path, readFileSync(path).subarray(0, -100));
  expect([...readHistory(path).tracks.keys()]).toEqual(["unit:ü0 -> b", "unit:ü1 -> b"]);
  expect(readHistory(join(folder, "none"))).toEqual(new History());
});

test("a file that can't be written leaves the old one", () => {
  const missing = join(folder, "missing", "history");
  expect(() => writeHistory(missing, new History())).toThrow("ENOENT");
  expect(existsSync(`${missing}.new`)).toBe(false);
});
