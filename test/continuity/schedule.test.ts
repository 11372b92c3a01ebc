import { expect, test } from "bun:test";
import { EVENTS, schedule } from "../../bench/continuity/schedule.ts";

test("the seed alone decides", () => {
  expect(schedule(7, 50)).toEqual(schedule(7, 50));
  expect(schedule(7, 50)).not.toEqual(schedule(8, 50));
  expect(schedule(7, 50).slice(0, 20)).toEqual(schedule(7, 20));
});

test("every kind comes before one comes again", () => {
  const kinds = Object.keys(EVENTS) as (keyof typeof EVENTS)[];
  const first = schedule(3, kinds.length).map(({ kind }) => kind);
  expect(first.toSorted()).toEqual(kinds.toSorted());
});
