import { expect, test } from "bun:test";
import {
  chooseFormat,
  expose,
  type Family,
  type Labels,
  labelSet,
  OPEN_METRICS,
  TEXT,
} from "./exposition.ts";

const counter = (labels: Labels, value: number): Family => ({
  name: "a",
  help: 'what "it" is\nand a \\',
  type: "counter",
  sets: [labelSet(labels)],
  values: [value],
});
const text = (family: Family, format: string) =>
  Buffer.concat(Array.from(expose([family], format), (part) => part.slice())).toString();

test("a counter in both formats", () => {
  expect(text(counter([["x", "1"]], 3), TEXT)).toBe(
    '# HELP a_total what "it" is\\nand a \\\\\n# TYPE a_total counter\na_total{x="1"} 3\n',
  );
  expect(text(counter([["x", "1"]], 3), OPEN_METRICS)).toBe(
    '# HELP a what \\"it\\" is\\nand a \\\\\n# TYPE a counter\na_total{x="1"} 3\n# EOF\n',
  );
});

test("label values are escaped and cut, empty ones left out", () => {
  expect(
    text(
      counter(
        [
          ["x", 'q"u\\o\nte'],
          ["y", ""],
        ],
        1,
      ),
      TEXT,
    ),
  ).toContain('a_total{x="q\\"u\\\\o\\nte"} 1\n');
  const [, body = ""] = /x="(.*)"/.exec(text(counter([["x", "z".repeat(5000)]], 1), TEXT)) ?? [];
  expect(body.length).toBe(1024);
  expect(text(counter([["y", ""]], 1), TEXT)).toContain("\na_total 1\n");
});

test("a family without samples is not there; a histogram ends with all of them", () => {
  expect(text({ ...counter([], 0), sets: [] }, TEXT)).toBe("");
  const family: Family = {
    name: "h",
    help: "h",
    type: "histogram",
    sets: [labelSet([["u", "a"]])],
    values: [],
    histograms: { bounds: [0.5, 1], counts: [[1, 3, 4]], sums: [2.5] },
  };
  expect(text(family, OPEN_METRICS)).toBe(
    '# HELP h h\n# TYPE h histogram\nh_bucket{u="a",le="0.5"} 1\nh_bucket{u="a",le="1.0"} 3\n' +
      'h_bucket{u="a",le="+Inf"} 4\nh_sum{u="a"} 2.5\nh_count{u="a"} 4\n# EOF\n',
  );
});

test("a body of many parts is whole, and text of several bytes a letter, too", () => {
  const sets = Array.from({ length: 20_000 }, (_, i) => labelSet([["x", `\u20ac\u{1f600}-${i}`]]));
  const values = sets.map((_, i) => i);
  const parts = Array.from(expose([{ name: "a", help: "", type: "gauge", sets, values }], TEXT), (part) =>
    part.slice(),
  );
  expect(parts.length).toBeGreaterThan(1);
  const lines = Buffer.concat(parts).toString().trimEnd().split("\n").slice(2);
  expect(lines).toEqual(sets.map((_, i) => `a{x="\u20ac\u{1f600}-${i}"} ${i}`));
});

test.each([
  0,
  9,
  10,
  12_345_678_901,
  2 ** 53 - 1,
  2 ** 64,
  0.25,
  -3,
  1e-9,
  Number.NaN,
  Number.POSITIVE_INFINITY,
])("the number %p", (value) => {
  const [, written = ""] = / (\S+)\n$/.exec(text(counter([], value), TEXT)) ?? [];
  expect(Number(written.replace("+Inf", "Infinity"))).toBe(value);
});

test.each([
  [undefined, TEXT],
  ["*/*", TEXT],
  ["text/plain", TEXT],
  ["application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPEN_METRICS],
  ["application/openmetrics-text;q=0.2,text/plain;q=0.9", TEXT],
  ["application/openmetrics-text;q=x", TEXT],
  [",".repeat(10_000), TEXT],
])("Accept: %p", (accept, type) => {
  expect<string>(chooseFormat(accept)).toBe(type);
});
