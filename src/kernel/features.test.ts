import { expect, test } from "bun:test";
import { fetchAtomics, kernelLimits, kernelRelease, probe } from "./features.ts";

const isRoot = process.getuid?.() === 0;

test.skipIf(!isRoot)("what the kernel can do fits its version", () => {
  const { major, minor } = kernelRelease();
  for (const { feature, present, since, required, without } of probe()) {
    const [fromMajor = 0, fromMinor = 0] = since.split(".").map(Number);
    // Distributions carry features back, so an older kernel may have one; a newer one must.
    if (major > fromMajor || (major === fromMajor && minor >= fromMinor))
      expect([feature, present]).toEqual([feature, true]);
    expect(required).toBe(without === "");
  }
  const limits = kernelLimits();
  for (const { feature, present, required } of probe())
    expect(limits.some((line) => line.startsWith(`no ${feature} (`))).toBe(!present && !required);
});

test.skipIf(!isRoot)("programs with fetching atomics are loaded wherever the kernel has these", () => {
  const { major, minor } = kernelRelease();
  if (major > 5 || (major === 5 && minor >= 18)) expect(fetchAtomics()).toBe(true);
  if (major === 5 && minor < 12) expect(fetchAtomics()).toBe(false);
});
