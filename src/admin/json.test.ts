import { expect, test } from "bun:test";
import { jsonParts, toJson } from "./json.ts";

const values: unknown[] = [
  null,
  "text",
  5,
  [],
  {},
  { bytes: new Uint8Array([1, 255]), set: new Set([1, "b"]), list: [[1], [2, { three: 3 }]] },
  { missing: undefined, list: [undefined, null], big: 2n ** 63n, small: 7n },
  new Map([["a", new Map([['b "quoted"', { c: [1n] }]])]]),
];

for (const value of values) {
  test(`in parts it is the same text: ${toJson(value)}`, () => {
    expect(Buffer.concat(jsonParts(value)).toString()).toBe(toJson(value));
  });
}

test("what JSON has no words for", () => {
  expect(toJson({ key: new Uint8Array([1, 255]), big: 2n ** 63n, small: 7n })).toBe(
    '{"key":"01ff","big":"9223372036854775808","small":7}',
  );
});

test("a large value comes in many parts", () => {
  const value = new Map([
    [
      "clusters",
      new Map(Array.from({ length: 5_000 }, (_, i) => [`cluster ${i}`, { endpoints: ["ä".repeat(50)] }])),
    ],
  ]);
  const parts = jsonParts(value);
  expect(parts.length).toBeGreaterThan(5);
  expect(Math.max(...parts.map((part) => part.length))).toBeLessThan(200_000);
  expect(Buffer.concat(parts).toString()).toBe(toJson(value));
});
