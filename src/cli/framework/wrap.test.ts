import { expect, test } from "bun:test";
import { nextStepOf } from "./next-step.ts";
import { definitions, terminalWidth, wrap } from "./wrap.ts";

test("the width is the terminal's, or what COLUMNS says, within reason", () => {
  expect([
    terminalWidth(72, undefined),
    terminalWidth(undefined, "90"),
    terminalWidth(undefined, undefined),
  ]).toEqual([72, 90, 80]);
  expect([
    terminalWidth(10, undefined),
    terminalWidth(500, undefined),
    terminalWidth(undefined, "x"),
  ]).toEqual([40, 100, 80]);
});

test("paragraphs are wrapped, and lines that begin with a blank stay", () => {
  expect(wrap("one two three\nfour\n\nfive\n  kept as it is, however long", 10)).toBe(
    "one two\nthree four\n\nfive\n  kept as it is, however long",
  );
  expect(wrap("a-word-that-is-longer than that", 10)).toBe("a-word-that-is-longer\nthan that");
  expect(wrap("USAGE kmesh x y", 11, "  ")).toBe("USAGE kmesh\n  x y");
});

test("definitions: the second column beside the first", () => {
  expect(definitions([["-o, --output", "how to print it all"]], 30)).toBe(
    "  -o, --output  how to print\n                it all",
  );
});

test("a bare error of the system gets the next step", () => {
  const of = (code: string, root = true) => nextStepOf(Object.assign(new Error(code), { code }), root);
  expect(of("EMFILE")).toContain("ulimit -n");
  expect(of("EROFS")).toContain("read-only");
  expect(of("EACCES", false)).toBe("Run it as root, or with sudo.");
  expect(of("EACCES")).toContain("lsattr");
  expect([of("ENOENT"), nextStepOf("text")]).toEqual(["", ""]);
});
