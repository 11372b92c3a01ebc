import { expect, test } from "bun:test";
import { renewalOf, shortestPause, skewOf, span } from "./lifetime.ts";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const DATED_BACK = 120_000;
/** A certificate of 24 h that istiod signs at `at`. */
const signed = (at: number) => ({ notBefore: at - DATED_BACK, notAfter: at + DAY });

test("renewal is at half of the life, give or take a hundredth", () => {
  const life = { notBefore: 0, notAfter: DAY };
  expect(renewalOf(life, () => 0.5)).toBe(12 * HOUR);
  expect(renewalOf(life, () => 0)).toBe(0.49 * DAY);
  expect(renewalOf(life, () => 1)).toBe(0.51 * DAY);
  const moments = new Set(Array.from({ length: 50 }, () => renewalOf(life)));
  expect(moments.size).toBeGreaterThan(40);
});

test("whatever the clock says, a new certificate is kept for a while", () => {
  expect(shortestPause({ notBefore: 0, notAfter: DAY })).toBe(0.02 * DAY);
});

test.each([
  ["right", 0, 0],
  ["two minutes ahead, as with a signer that does not date back", 2 * 60_000, 0],
  ["a minute behind", -60_000, 0],
  ["so far behind that it is not valid yet", -10 * 60_000, -10 * 60_000],
  ["an hour ahead", HOUR, HOUR],
  ["so far ahead that it has expired", 30 * HOUR, 30 * HOUR],
])("a clock that is %s", (_, offset, skew) => {
  expect(skewOf(signed(1e12), 1e12 + offset)).toBe(skew);
});

test("lengths of time in words", () => {
  expect([30_000, -180_000, 5 * HOUR, 3 * DAY].map(span)).toEqual(["30 s", "3 min", "5 h", "3 d"]);
});
