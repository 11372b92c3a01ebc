import { describe, expect, test } from "bun:test";
import { membarrier, waitByUpdate } from "./memory.ts";

describe.skipIf(process.getuid?.() !== 0)("grace periods", () => {
  test.each([
    ["by membarrier", membarrier],
    ["by an update", waitByUpdate],
  ])("%s take the time that CPUs need", (_, wait) => {
    const start = performance.now();
    for (let i = 0; i < 5; i++) wait();
    expect(performance.now() - start).toBeGreaterThan(1);
  });
});
