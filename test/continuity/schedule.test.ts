import { expect, test } from "bun:test";
import { EVENTS, type EventKind, MODE_EVENTS, schedule } from "../../bench/continuity/schedule.ts";

const KINDS = Object.keys({ ...EVENTS, ...MODE_EVENTS }) as EventKind[];

test("the seed alone decides", () => {
  expect(schedule(7, 50, KINDS)).toEqual(schedule(7, 50, KINDS));
  expect(schedule(7, 50, KINDS)).not.toEqual(schedule(8, 50, KINDS));
  expect(schedule(7, 50, KINDS).slice(0, 20)).toEqual(schedule(7, 20, KINDS));
});

test("every kind comes before one comes again", () => {
  const first = schedule(3, KINDS.length, KINDS).map(({ kind }) => kind);
  expect(first.toSorted()).toEqual(KINDS.toSorted());
});
