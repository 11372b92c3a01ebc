import { describe, expect, test } from "bun:test";
import { ExtentAllocator } from "./extent-allocator.ts";
import { Ids } from "./ids.ts";

describe("ids", () => {
  test("are dense, start where told, and fill the gaps that were found", () => {
    const ids = new Ids(1, [0, 0, 1, 0, 1, 0]);
    expect([ids.take(), ids.take(), ids.take()]).toEqual([1, 3, 5]);
    expect(ids.bound).toBe(6);
  });

  test("given back, they are taken again", () => {
    const ids = new Ids();
    const first = ids.take();
    ids.take();
    ids.give(first);
    expect(ids.take()).toBe(first);
  });
});

describe("runs", () => {
  test("never overlap, whatever is taken and given back", () => {
    const runs = new ExtentAllocator([0, 0, 0, 1, 1, 0, 0, 0, 1, 0]);
    const taken = new Map<number, number>([
      [3, 2],
      [8, 1],
    ]);
    let seed = 7;
    const random = (below: number) => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return seed % below;
    };
    for (let i = 0; i < 2000; i++) {
      if (taken.size > 20 && random(2)) {
        const [first = 0, length = 0] = [...taken][random(taken.size)] ?? [];
        taken.delete(first);
        runs.give(first, length);
      } else {
        const length = 1 + random(5);
        taken.set(runs.take(length), length);
      }
      const lines = [...taken].flatMap(([first, length]) => Array.from({ length }, (_, k) => first + k));
      expect(new Set(lines).size).toBe(lines.length);
      expect(Math.max(...lines)).toBeLessThan(runs.bound);
    }
  });

  test("a free run of another length is split before the table grows", () => {
    const runs = new ExtentAllocator();
    const long = runs.take(4);
    runs.take(1);
    runs.give(long, 4);
    expect(runs.take(3)).toBe(long);
    expect(runs.take(1)).toBe(long + 3);
  });
});
