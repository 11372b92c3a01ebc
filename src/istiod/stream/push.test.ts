import { expect, test } from "bun:test";
import { Push } from "./push.ts";
import type { ResourceType } from "./sink.ts";
import { Subscription } from "./subscription.ts";
import { TYPES } from "./types.ts";

const TIMES = { quiet: 20, longest: 1_000, answer: 5_000, firstAnswer: 30_000 };

/** All types, answered at time 1. */
function answered() {
  const types = Object.fromEntries(TYPES.map((type) => [type, new Subscription(type)])) as Record<
    ResourceType,
    Subscription
  >;
  for (const type of TYPES) types[type].answeredAt = 1;
  return types;
}

function pushOf(type: ResourceType, now: number): Push {
  const push = new Push(TIMES);
  push.received(type, "v", now);
  push.change(type, now);
  return push;
}

test("endpoints alone are due at once, anything else after the quiet period", () => {
  const push = pushOf("endpoints", 100);
  expect(push.dueAt(answered(), false)).toBe(0);
  push.change("cluster", 100);
  expect(push.dueAt(answered(), false)).toBe(120);
});

test("each response begins the quiet period anew, up to the longest", () => {
  const push = pushOf("cluster", 100);
  push.received("listener", "v", 115);
  expect(push.dueAt(answered(), false)).toBe(135);
  push.received("listener", "v", 1_099);
  expect(push.dueAt(answered(), false)).toBe(1_100);
});

test("unanswered endpoints hold it for an answer's time since they were asked for", () => {
  const types = answered();
  types.endpoints.unanswered.add("c");
  types.endpoints.askedAt = 100;
  const push = pushOf("cluster", 100);
  expect(push.dueAt(types, false)).toBe(5_100);
  types.endpoints.unanswered.clear();
  expect(push.dueAt(types, false)).toBe(120);
});

test("after a cluster's removal it lacks the listeners, and gets their time anew with a new stream", () => {
  const push = pushOf("cluster", 100);
  push.expect("listener", 100);
  push.expect("route", 100);
  expect(push.lacksUntil(answered(), false)).toBe(5_100);
  push.restart(2_000);
  expect(push.lacksUntil(answered(), false)).toBe(7_000);
  push.received("listener", "v", 2_100);
  push.unexpect("route");
  expect(push.dueAt(answered(), false)).toBe(1_100);
});

test("the first snapshot can't do without clusters and listeners, and is patient with the rest", () => {
  const types = answered();
  types.listener.answeredAt = 0;
  const push = pushOf("cluster", 100);
  expect(push.dueAt(types, true)).toBe(Infinity);
  types.listener.answeredAt = 100;
  types.endpoints.unanswered.add("c");
  types.endpoints.askedAt = 100;
  types.endpoints.answeredAt = 0;
  expect(push.dueAt(types, true)).toBe(30_100);
  types.endpoints.answeredAt = 3_000;
  expect(push.dueAt(types, true)).toBe(8_000);
  types.endpoints.unanswered.clear();
  types.names.answeredAt = 0;
  expect(push.dueAt(types, true)).toBe(5_100);
});
