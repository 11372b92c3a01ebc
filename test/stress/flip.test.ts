import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { flip } from "./flip.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("the flip test is skipped: it needs root");

describe.skipIf(!root)("services that flip under connections", () => {
  test("no connection misses, none meets another service's endpoint", async () => {
    const report = await flip(10);
    expect(report).toMatchObject({ misses: 0, mixtures: 0, errors: {} });
    expect(report.connections).toBeGreaterThan(1000);
    expect(report.flips).toBeGreaterThan(100);
  });
});
