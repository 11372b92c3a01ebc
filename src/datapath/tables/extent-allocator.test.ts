import { describe, expect, test } from "bun:test";
import { ExtentAllocator } from "./extent-allocator.ts";

describe("extents", () => {
  test("never overlap, whatever is taken and given back", () => {
    const extents = new ExtentAllocator([0, 0, 0, 1, 1, 0, 0, 0, 1, 0]);
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
        extents.give(first, length);
      } else {
        const length = 1 + random(5);
        taken.set(extents.take(length), length);
      }
      const lines = [...taken].flatMap(([first, length]) => Array.from({ length }, (_, k) => first + k));
      expect(new Set(lines).size).toBe(lines.length);
      expect(Math.max(...lines)).toBeLessThan(extents.bound);
    }
  });

  test("a free run of another length is split before the table grows", () => {
    const extents = new ExtentAllocator();
    const long = extents.take(4);
    extents.take(1);
    extents.give(long, 4);
    expect(extents.take(3)).toBe(long);
    expect(extents.take(1)).toBe(long + 3);
  });

  test("free neighbours merge, on both sides and with the end", () => {
    const extents = new ExtentAllocator();
    const [a, b, c, d] = [extents.take(2), extents.take(3), extents.take(4), extents.take(1)];
    extents.give(a, 2);
    extents.give(c, 4);
    extents.give(b, 3);
    expect(extents.take(9)).toBe(a);
    extents.give(a, 9);
    extents.give(d, 1);
    expect(extents.bound).toBe(0);
  });

  test("what a start finds free is merged with what is given back", () => {
    const extents = new ExtentAllocator([1, 0, 0, 1, 0, 1, 0, 0]);
    expect(extents.bound).toBe(6);
    extents.give(3, 1);
    expect(extents.take(4)).toBe(1);
    expect(extents.take(1)).toBe(6);
  });

  test("a table that grows and shrinks 10,000 times takes little more than what is held and waiting", () => {
    const extents = new ExtentAllocator();
    const largest = 1_000;
    const others = Array.from({ length: 50 }, () => extents.take(3));
    /** Given back with a delay, as a grace period has it. */
    const waiting: [number, number][] = [];
    let held: [number, number] = [extents.take(1), 1];
    let widest = 0;
    for (let step = 1; step <= 10_000; step++) {
      const place = step % (2 * largest);
      const length = 1 + (place < largest ? place : 2 * largest - place);
      const before = held;
      held = [extents.take(length), length];
      waiting.push(before);
      if (waiting.length > 4) for (const [first, size] of waiting.splice(0)) extents.give(first, size);
      // A neighbour that comes and goes must not leave holes behind.
      const other = step % others.length;
      extents.give(others[other] ?? 0, 3);
      others[other] = extents.take(3);
      widest = Math.max(widest, extents.bound);
    }
    // Six of a thousand are held or waiting at a time; without merging it would be half a million.
    expect(widest).toBeGreaterThan(6 * largest);
    expect(widest).toBeLessThan(8 * largest);
  });
});
