import { expect, test } from "bun:test";
import { fetchAtomics, kernelRelease, probe } from "./features.ts";

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
});

test.skipIf(!isRoot)("programs with fetching atomics are loaded from 6.2 on and not before", () => {
  const { major, minor } = kernelRelease();
  expect(fetchAtomics()).toBe(major > 6 || (major === 6 && minor >= 2));
});
