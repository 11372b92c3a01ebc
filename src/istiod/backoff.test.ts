import { expect, test } from "bun:test";
import { BACKOFF, Backoff } from "./backoff.ts";

test("delays double up to the longest, each jittered down to its half, and start over after a reset", () => {
  const backoff = new Backoff({ first: 100, longest: 1_000 });
  for (const ceiling of [100, 200, 400, 800, 1_000, 1_000]) {
    const delay = backoff.next();
    expect(delay).toBeGreaterThanOrEqual(ceiling / 2);
    expect(delay).toBeLessThanOrEqual(ceiling);
  }
  backoff.reset();
  expect(backoff.next()).toBeLessThanOrEqual(100);
});

test("two machines don't come back at the same moment", () => {
  expect(new Backoff().next()).not.toBe(new Backoff().next());
});

test("no delay reaches the ten seconds after which istiod forgets a machine", () => {
  expect(BACKOFF.longest).toBeLessThan(10_000);
});
