import { expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { monotonic } from "./clock.ts";

test("the clock is the kernel's CLOCK_MONOTONIC", () => {
  const before = monotonic();
  const python = "import time; print(time.monotonic_ns())";
  const between = BigInt(spawnSync("python3", ["-c", python], { encoding: "utf8" }).stdout.trim());
  expect(between).toBeGreaterThan(before);
  expect(monotonic()).toBeGreaterThan(between);
});
