import { describe, expect, test } from "bun:test";
import { countCpus, cpusOnline, membarrier, waitByUpdate, waitForGracePeriod } from "./grace-period.ts";

test("CPUs in a list of sysfs are counted", () => {
  expect(["0\n", "0-1\n", "0-3,8,10-11\n", "\n"].map(countCpus)).toEqual([1, 2, 7, 0]);
  expect(cpusOnline()).toBeGreaterThan(0);
});

describe.skipIf(process.getuid?.() !== 0)("grace periods", () => {
  const ways: [string, () => unknown][] = [["by an update", waitByUpdate]];
  // With one CPU it returns at once: that is why the other way exists.
  if (cpusOnline() > 1) ways.push(["by membarrier", membarrier]);
  test.each(ways)("%s take the time that CPUs need", (_, wait) => {
    const start = performance.now();
    for (let i = 0; i < 5; i++) wait();
    expect(performance.now() - start).toBeGreaterThan(1);
  });

  test("with one CPU online, before or after, the wait is a map update", () => {
    const saying = (...counts: number[]) => {
      const seen = [...counts];
      return () => seen.shift() ?? Number.NaN;
    };
    expect(waitForGracePeriod(saying(1))).toBe("map update");
    expect(waitForGracePeriod(saying(0))).toBe("map update");
    // A CPU went offline while membarrier was under way.
    expect(waitForGracePeriod(saying(2, 1))).toBe("map update");
    expect(waitForGracePeriod(saying(2, 2))).toBe("membarrier");
  });
});
