import { expect, test } from "bun:test";
import { secondsOf } from "./wait.ts";

test("a timeout is seconds, none is one look", () => {
  expect(["0", "30", "2.5", "10s", "infinity"].map(secondsOf)).toEqual([
    0,
    30,
    2.5,
    10,
    Number.POSITIVE_INFINITY,
  ]);
  for (const wrong of ["", "s", "-1", "1m", "3601", "soon"])
    expect(() => secondsOf(wrong)).toThrow("--timeout");
});
