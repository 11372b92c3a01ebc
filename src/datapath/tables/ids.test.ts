import { describe, expect, test } from "bun:test";
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
