import { expect, jest, test } from "bun:test";
import { Quarantine } from "./quarantine.ts";

test("an id is ready after its rest, when nobody carries it; a carried one is looked at once a rest", () => {
  let now = 1_000;
  const clock = jest.spyOn(performance, "now").mockImplementation(() => now);
  try {
    const carried = new Set([1, 2]);
    let looks = 0;
    const resting = new Quarantine(100, (id) => {
      looks++;
      return !carried.has(id);
    });
    for (const id of [1, 2, 3]) resting.add(id);
    resting.add(4);
    resting.remove(4);
    now += 99;
    expect(resting.expired()).toEqual([]);
    now += 1;
    expect(resting.expired()).toEqual([3]);
    expect(looks).toBe(3);
    carried.delete(1);
    expect(resting.expired()).toEqual([]);
    expect(looks).toBe(3);
    now += 100;
    expect(resting.expired()).toEqual([1]);
    now += 100;
    carried.clear();
    expect(resting.expired()).toEqual([2]);
    expect(resting.expired()).toEqual([]);
  } finally {
    clock.mockRestore();
  }
});

test("a call looks at a bounded number of ids, however many wait, and each once a term", () => {
  let now = 1_000;
  const clock = jest.spyOn(performance, "now").mockImplementation(() => now);
  try {
    let looks = 0;
    const resting = new Quarantine(100, (id) => {
      looks++;
      return id % 2 === 1;
    });
    for (let id = 0; id < 100_000; id++) resting.add(id);
    now += 100;
    expect(resting.expired().length).toBe(32);
    expect(looks).toBe(64);
    let ready = 32;
    for (let calls = 0; calls < 100_000 / 64; calls++) ready += resting.expired().length;
    expect([ready, looks]).toEqual([50_000, 100_000]);
    expect(resting.expired()).toEqual([]);
  } finally {
    clock.mockRestore();
  }
});
