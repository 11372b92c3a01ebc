import { expect, test } from "bun:test";
import { Groups } from "./groups.ts";

test("values come and go one by one, in their order", () => {
  const groups = new Groups();
  const at = (key: string) => [...groups.get(key)];
  expect(at("k")).toEqual([]);
  for (const value of ["a", "a", "b", "c", "b"]) groups.add("k", value);
  expect(at("k")).toEqual(["a", "b", "c"]);
  groups.delete("k", "a");
  groups.delete("k", "missing");
  expect(at("k")).toEqual(["b", "c"]);
  groups.delete("k", "b");
  groups.delete("k", "b");
  expect([at("k"), groups.size]).toEqual([["c"], 1]);
  groups.add("k", "d");
  expect(at("k")).toEqual(["c", "d"]);
  for (const value of ["c", "d"]) groups.delete("k", value);
  expect([at("k"), groups.size]).toEqual([[], 0]);
});
