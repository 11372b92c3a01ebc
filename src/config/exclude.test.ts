import { expect, test } from "bun:test";
import { formatExclude, parseExclude } from "./exclude.ts";

test("exclusions", () => {
  expect(parseExclude("10.1.2.3/8:443")).toEqual({ address: "10.0.0.0", length: 8, port: 443 });
  expect(parseExclude("fd00::/8")).toEqual({ address: "fd00::", length: 8, port: 0 });
  expect(parseExclude("[fd00::/8]:443")).toEqual({ address: "fd00::", length: 8, port: 443 });
  expect(parseExclude("::1")).toEqual({ address: "::1", length: 128, port: 0 });
  for (const wrong of [
    "10.0.0.0/33",
    "10.0.0.0/8:",
    "10.0.0.0/8:0",
    "10.0.0.0/8:65536",
    "host",
    "",
    "10.0.0.0/8:80:80",
  ]) {
    expect(() => parseExclude(wrong)).toThrow();
  }
});

test("what was read is written as it can be read again", () => {
  for (const text of ["10.0.0.0/8", "10.0.0.0/8:443", "fd00::/8", "[fd00::/8]:443"])
    expect(formatExclude(parseExclude(text))).toBe(text);
});
