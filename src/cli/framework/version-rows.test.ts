import { expect, test } from "bun:test";
import { formatStanding } from "./version-rows.ts";

const NOW = Date.parse("2026-02-03T04:00:00.000Z");
const live = { abi: "aaaa", code: "a", version: "0.2.0", since: "2026-02-03T03:50:00.000Z" };
const kept = { abi: "bbbb", since: "2026-02-03T03:50:00.000Z" };

test("what governs, what is kept and for how long", () => {
  expect(formatStanding({ live, kept }, true, NOW)).toEqual([
    ["version", "the tables of layout aaaa (kmesh 0.2.0) govern for 10 min"],
    ["", "the tables of layout bbbb are kept for the way back, for 50 min more"],
  ]);
  const [, [, late] = []] = formatStanding({ live, kept }, false, NOW + 3_600_000);
  expect(late).toBe("the tables of layout bbbb are kept for the way back, until an agent removes them");
});

test("a step that is under way, or that an agent left", () => {
  const step = { name: "flip", from: kept, to: live, at: "2026-02-03T03:59:57.000Z" } as const;
  const flip = "giving the hooks from the tables of layout bbbb to the tables of layout aaaa (kmesh 0.2.0)";
  expect(formatStanding({ step }, true, NOW)).toEqual([["version", `under way for 3.0 s: ${flip}`]]);
  expect(formatStanding({ step }, false, NOW)).toEqual([
    ["version", `BROKEN OFF, begun 3.0 s ago: ${flip}; the next start takes care of it`],
  ]);
});

test("no manifest, and one that can't be used", () => {
  expect(formatStanding(undefined, true, NOW)).toEqual([]);
  expect(formatStanding({}, true, NOW)).toEqual([]);
  expect(formatStanding({ error: "it is damaged" }, true, NOW)).toEqual([
    ["manifest", "not used: it is damaged"],
  ]);
});
