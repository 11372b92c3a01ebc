import { expect, test } from "bun:test";
import { type Counters, noCounters } from "./counters/rows.ts";
import { History, STEP } from "./history.ts";

const START = Date.parse("2026-01-01T00:00:00Z");
const at = (seconds: number) => START + seconds * 1000;
const counters = (opened: number, refused = 0, more: Partial<Counters> = {}): Counters => {
  const all = { ...noCounters(), opened, ...more };
  all.ends[0] = opened - refused;
  all.ends[1] = refused;
  return all;
};
const record = (history: History, seconds: number, value: Counters, id = "e") =>
  history.record(new Map([[id, value]]), at(seconds));

test("what was there before the first look is no news; what came since is", () => {
  const history = new History();
  record(history, 0, counters(1000));
  expect(history.recent("e", counters(1000), 60, at(1)).opened).toBe(0);
  record(history, 10, counters(1010, 3));
  expect(history.recent("e", counters(1012, 3), 60, at(15)).opened).toBe(12);
  expect(history.recent("e", counters(1012, 3), 60, at(15)).ends[1]).toBe(3);
  // An edge that is new since the last look is all news.
  expect(history.recent("new", counters(5), 60, at(15)).opened).toBe(5);
});

test("what comes between two samples of one step is news", () => {
  const history = new History();
  history.record(new Map(), at(0));
  record(history, 9, counters(7));
  expect(history.recent("e", counters(7), 60, at(9)).opened).toBe(7);
});

test("a window sees its own steps alone", () => {
  const history = new History();
  for (let i = 0; i <= 30; i++) record(history, i * STEP, counters(i * 10));
  expect(history.recent("e", counters(300), 100, at(300)).opened).toBeWithin(90, 121);
  expect(history.recent("e", counters(300), 3600, at(300)).opened).toBe(300);
  expect(history.covered(at(300))).toBe(300);
});

test("an hour and no more", () => {
  const history = new History();
  for (let i = 0; i <= 500; i++) record(history, i * STEP, counters(i));
  expect(history.covered(at(5000))).toBe(3600);
  const series = history.series("e", at(5000));
  expect(series?.opened.length).toBe(360);
  expect(series?.opened.reduce((sum, count) => sum + count, 0)).toBeWithin(355, 361);
});

test("idle steps take no memory, and are zero", () => {
  const history = new History();
  for (let i = 0; i <= 100; i++) record(history, i * STEP, counters(Math.min(i, 3)));
  expect(history.series("e", at(1000))?.opened.slice(-50)).toEqual(Array(50).fill(0));
  expect(history.tracks.get("e")?.chunks.size).toBe(1);
});

test("a clock that is set back begins anew, and gives nothing negative", () => {
  const history = new History();
  record(history, 1000, counters(10));
  record(history, 1010, counters(20));
  record(history, 0, counters(25));
  const recent = history.recent("e", counters(26), 60, at(5));
  expect(recent.opened).toBeGreaterThanOrEqual(1);
  expect(recent.opened).toBeLessThanOrEqual(6);
});

test("an edge that came since the last sample has a history at once, one that never was has none", () => {
  const history = new History();
  for (let i = 0; i <= 3; i++) record(history, i * STEP, counters(i));
  const series = history.series("new", at(35), counters(7, 2));
  expect(series?.opened).toEqual([0, 0, 0, 7]);
  expect(series?.failed.at(-1)).toBe(2);
  expect(history.series("new", at(35))).toBeUndefined();
});

test("an edge without room counts nothing of its past when it gets room", () => {
  const history = new History();
  const totals = (others: number, last: number) =>
    new Map([
      ...Array.from({ length: 500 }, (_, i) => [`e${i}`, counters(others)] as const),
      ["last", counters(last)] as const,
    ]);
  history.record(totals(1, 900), at(0));
  for (const seconds of [10, 4000]) history.record(totals(2, 900), at(seconds));
  expect(history.withoutRoom(totals(2, 900).keys())).toBe(1);
  const idle = [...totals(2, 900)].find(([id]) => history.withoutRoom([id]) === 1)?.[0] ?? "last";
  expect(history.recent(idle, counters(900), 60, at(4005)).opened).toBe(0);
  // All others were idle for an hour: it takes the place of one of them, which then is no news either.
  const moved = new Map(totals(2, 900)).set(idle, counters(905));
  history.record(moved, at(4010));
  history.record(moved, at(4020));
  for (const [id, value] of moved) expect(history.recent(id, value, 60, at(4025)).opened).toBeLessThan(6);
  expect(history.withoutRoom(moved.keys())).toBe(1);
  expect(history.withoutRoom([idle])).toBe(0);
  expect(history.recent(idle, counters(908), 60, at(4025)).opened).toBe(3);
});

test("no more than 500 edges", () => {
  const history = new History();
  const totals = new Map(Array.from({ length: 600 }, (_, i) => [`e${i}`, counters(1)] as const));
  history.record(totals, at(0));
  history.record(new Map([...totals].map(([id]) => [id, counters(2)])), at(10));
  expect(history.tracks.size).toBe(500);
});
