import { expect, test } from "bun:test";
import { formatOf, formatSpan, indent, table } from "./output.ts";

test("columns", () => {
  const text = table(
    ["SERVICE", "CONNECTIONS"],
    [
      ["a", 5],
      ["longer:80", 12345],
    ],
  );
  expect(text).toBe("SERVICE    CONNECTIONS\na                    5\nlonger:80        12345");
});

test("an empty table is its head", () => {
  expect(table(["A", "B"], [])).toBe("A  B");
});

test("indent leaves empty lines empty", () => {
  expect(indent("a\n\nb")).toBe("  a\n\n  b");
});

test("spans", () => {
  expect([340, 1500, 12_345, 200_000, 18_000_000, 200_000_000].map(formatSpan)).toEqual([
    "340 ms",
    "1.5 s",
    "12 s",
    "3 min",
    "5 h",
    "2 days",
  ]);
});

test("an output that is neither text nor json is refused", () => {
  expect(formatOf({ output: "json" })).toBe("json");
  expect(() => formatOf({ output: "yaml" })).toThrow("neither text nor json");
});
