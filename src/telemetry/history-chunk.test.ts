import { expect, test } from "bun:test";
import { CHUNK_STEPS, Chunk } from "./history-chunk.ts";

const FIELDS = 16;

test("fields come in any order, and each keeps its values", () => {
  const chunk = new Chunk();
  const order = [7, 0, 15, 3, 8];
  for (const field of order)
    for (let step = 0; step < CHUNK_STEPS; step++) chunk.add(step, field, field * 100 + step);
  chunk.add(35, 3, 1);
  chunk.set(4, 15, 0);
  for (const field of order)
    for (let step = 0; step < CHUNK_STEPS; step++) {
      const expected = field * 100 + step + (field === 3 && step === 35 ? 1 : 0);
      expect(chunk.get(step, field)).toBe(field === 15 && step === 4 ? 0 : expected);
    }
  expect(chunk.get(0, 1)).toBe(0);
  expect(chunk.sum(7, -3, 1)).toBe(700 + 701);
  expect(chunk.sum(7, 34, 90)).toBe(734 + 735);
  expect(chunk.sum(7, 36, 90) + chunk.sum(7, -9, -1) + chunk.sum(1, 0, 35)).toBe(0);
});

test("all of its values make an equal chunk, and zeros take no room", () => {
  const chunk = new Chunk();
  chunk.set(3, 5, 2.5);
  chunk.set(0, 11, 7);
  chunk.set(1, 12, 0);
  chunk.add(1, 13, 0);
  const all = new Float32Array(CHUNK_STEPS * FIELDS).fill(9);
  chunk.copyTo(all, FIELDS);
  expect(all[3 * FIELDS + 5]).toBe(2.5);
  expect(all.reduce((sum, value) => sum + value)).toBe(9.5);
  const again = Chunk.of(all, FIELDS);
  expect([again.get(3, 5), again.get(0, 11), again.get(1, 12)]).toEqual([2.5, 7, 0]);
  expect(again.size).toBe(chunk.size);
  expect(chunk.size).toBe(2 * CHUNK_STEPS);
  chunk.set(3, 5, 0);
  expect(chunk.next().size).toBe(CHUNK_STEPS);
  expect(chunk.next().get(0, 11)).toBe(0);
});
