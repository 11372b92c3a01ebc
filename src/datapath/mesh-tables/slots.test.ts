import { describe, expect, test } from "bun:test";
import { type Members, maglevTable, ringTable, smoothOrder } from "./slots.ts";

/** Members 0, 1, ... with these weights. */
const members = (...weights: number[]): Members => ({
  ids: Uint32Array.from(weights, (_, id) => id),
  weights,
  nameOf: (id) => `10.0.0.${id}:80`,
});

function counts(slots: Uint32Array): number[] {
  const found: number[] = [];
  for (const slot of slots) found[slot] = (found[slot] ?? 0) + 1;
  return found;
}

describe("smooth order", () => {
  test("equal weights are one slot each", () => {
    expect([...smoothOrder(members(7, 7, 7))]).toEqual([0, 1, 2]);
    expect(smoothOrder(members()).length).toBe(0);
  });

  test("80/20 is five slots, spread out", () => {
    const slots = smoothOrder(members(80, 20));
    expect(counts(slots)).toEqual([4, 1]);
    expect([...slots].indexOf(1)).toBe(2);
  });

  test("in any window of 1,000 turns a share is within 1 %", () => {
    for (const weights of [
      [1, 99],
      [333, 667],
      [90, 10],
      [5, 7, 11],
      [1, 1_000_003],
    ]) {
      const slots = smoothOrder(members(...weights));
      const sum = weights.reduce((a, b) => a + b, 0);
      for (const start of [0, 1, 17, slots.length - 1]) {
        const window = Uint32Array.from({ length: 1000 }, (_, i) => slots[(start + i) % slots.length] ?? 0);
        weights.forEach((weight, id) => {
          expect(Math.abs((counts(window)[id] ?? 0) - (1000 * weight) / sum)).toBeLessThanOrEqual(10);
        });
      }
    }
  });

  test("no member is forgotten, however small its weight, and slots stay bounded", () => {
    const slots = smoothOrder(members(1, 4_000_000_000));
    expect(slots.length).toBeLessThanOrEqual(4097);
    expect(counts(slots)[0]).toBe(1);
  });

  test("fractions of locality weights keep their proportion", () => {
    const [a = 0, b = 0] = counts(smoothOrder(members(0.412, 0.588)));
    expect(a / (a + b)).toBeCloseTo(0.412, 3);
  });
});

describe.each([
  ["Maglev", maglevTable],
  ["ring", ringTable],
] as const)("%s tables", (_, table) => {
  test("every member has slots in proportion to its weight", () => {
    const [a = 0, b = 0, c = 0] = counts(table(members(1, 1, 2), 1024));
    expect(a).toBeGreaterThan(0);
    expect(b).toBeGreaterThan(0);
    expect(c).toBeGreaterThan(Math.max(a, b));
  });

  test("the order of members does not matter", () => {
    const four = members(1, 1, 1, 1);
    const here = table(four, 0);
    const reversed = { ...four, ids: four.ids.slice().reverse(), nameOf: (i: number) => four.nameOf(3 - i) };
    const there = table(reversed, 0);
    const moved = here.filter((slot, i) => slot !== there[i]).length;
    expect(moved / here.length).toBeLessThan(0.2);
  });

  test("a member that leaves moves few of the others' slots", () => {
    const ten = members(...Array.from({ length: 10 }, () => 1));
    const before = table(ten, 4096);
    const after = table({ ...ten, ids: ten.ids.slice(0, 9), weights: ten.weights.slice(0, 9) }, 4096);
    if (before.length !== after.length) return expect(before.length).toBeGreaterThan(after.length);
    const moved = before.filter((slot, i) => slot !== 9 && slot !== after[i]).length;
    expect(moved / before.length).toBeLessThan(0.2);
  });

  test("nobody is an empty table", () => {
    expect(table(members(), 0).length).toBe(0);
  });
});
