import { expect, test } from "bun:test";
import { labelCount, nameOfWire, wireName } from "./wire.ts";

test("names to bytes and back, in lower case", () => {
  for (const name of ["a", "Shop.Demo.Internal", "_x-1.y", "a".repeat(63), `${"a.".repeat(126)}a`]) {
    const wire = wireName(name);
    if (!wire) throw new Error(name);
    expect(nameOfWire(wire)).toBe(name.toLowerCase());
    expect(labelCount(wire)).toBe(name.split(".").length);
    expect(wireName(`${name}.`)).toEqual(wire);
  }
  expect(wireName("a.bc")).toEqual(Uint8Array.of(1, 97, 2, 98, 99));
});

test("what is no name", () => {
  for (const name of ["", ".", "a..b", ".a", "a b", "a/b", "é", "*", "a".repeat(64), `${"a.".repeat(127)}a`])
    expect([name, wireName(name)]).toEqual([name, undefined]);
});
