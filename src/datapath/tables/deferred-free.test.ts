import { expect, jest, test } from "bun:test";
import { DeferredFree } from "./deferred-free.ts";

function collecting(wait: () => void = () => {}) {
  const errors: unknown[] = [];
  return { errors, free: new DeferredFree((error) => errors.push(error), wait) };
}

test("a release that throws is reported, and all others are done", () => {
  const { errors, free } = collecting();
  const done: number[] = [];
  const broken = new Error("no record 7");
  free.defer(() => done.push(1));
  free.defer(() => {
    throw broken;
  });
  free.defer(() => done.push(3));
  free.flush();
  expect([done, errors]).toEqual([[1, 3], [broken]]);
  free.flush();
  expect([done, errors]).toEqual([[1, 3], [broken]]);
});

test("without a grace period nothing is released; the next try releases all", () => {
  const fault = new Error("ENOMEM");
  const outcomes = [fault, undefined];
  const { errors, free } = collecting(() => {
    const outcome = outcomes.shift();
    if (outcome) throw outcome;
  });
  const done: number[] = [];
  free.defer(() => done.push(1));
  free.defer(() => done.push(2));
  free.flush();
  expect([done, errors]).toEqual([[], [fault]]);
  free.flush();
  expect(done).toEqual([1, 2]);
});

test("a burst shares one grace period, later ones get their own", () => {
  jest.useFakeTimers();
  try {
    let waits = 0;
    const { free } = collecting(() => waits++);
    const done: number[] = [];
    for (let i = 0; i < 5; i++) free.defer(() => done.push(i));
    jest.advanceTimersByTime(199);
    expect([waits, done.length]).toEqual([0, 0]);
    jest.advanceTimersByTime(1);
    expect([waits, done.length]).toEqual([1, 5]);
    free.defer(() => done.push(5));
    jest.advanceTimersByTime(200);
    expect([waits, done.length]).toEqual([2, 6]);
  } finally {
    jest.useRealTimers();
  }
});

test("closing releases what releases defer, and ends also where nothing can be released", () => {
  const { free } = collecting();
  const done: string[] = [];
  free.defer(() => {
    done.push("first");
    free.defer(() => done.push("second"));
  });
  free.close();
  expect(done).toEqual(["first", "second"]);
  const stuck = collecting(() => {
    throw new Error("never");
  });
  stuck.free.defer(() => done.push("third"));
  stuck.free.close();
  expect(done).toEqual(["first", "second"]);
  expect(stuck.errors.length).toBeGreaterThan(0);
});
