import { afterEach, expect, test } from "bun:test";
import { until } from "../../test/lab/scripted-istiod.ts";
import type { Answer } from "./check.ts";
import { parseProbe } from "./probe.ts";
import { HealthWatch, type Verdict } from "./watch.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0)) cleanup();
});

const good: Answer = { healthy: true };
const bad = (reason: string): Answer => ({ healthy: false, reason });

/** A watch that gets these answers, five milliseconds apart; the last one again and again. */
function watchOf(answers: Answer[], thresholds: { success?: number; failure?: number; delay?: number } = {}) {
  const verdicts: Verdict[] = [];
  let asked = 0;
  const watch = new HealthWatch({
    probe: {
      ...parseProbe({ tcpSocket: { port: 1 } }),
      period: 5,
      initialDelay: thresholds.delay ?? 0,
      successThreshold: thresholds.success ?? 1,
      failureThreshold: thresholds.failure ?? 1,
    },
    address: "10.0.0.5",
    on: (verdict) => verdicts.push(verdict),
    ask: async () => answers[Math.min(asked++, answers.length - 1)] ?? good,
  });
  cleanups.push(() => watch.stop());
  watch.start();
  const done = () => until(() => asked >= answers.length + 2, "all answers");
  return { watch, verdicts, done };
}

test("only changes are told, the first verdict too", async () => {
  const { verdicts, done, watch } = watchOf([good, good, bad("gone"), bad("still"), good]);
  await done();
  expect(verdicts).toEqual([
    { healthy: true, message: "" },
    { healthy: false, message: "gone" },
    { healthy: true, message: "" },
  ]);
  expect(watch.verdict).toEqual({ healthy: true, message: "" });
});

test("thresholds count in a row, before the first verdict too", async () => {
  const { verdicts, done } = watchOf(
    [bad("1"), good, bad("2"), bad("3"), bad("4"), good, bad("5"), good, good, bad("6"), bad("7"), good],
    { success: 2, failure: 3 },
  );
  await done();
  // good, good, good at the end of the list keep it healthy.
  expect(verdicts).toEqual([
    { healthy: false, message: "4" },
    { healthy: true, message: "" },
  ]);
});

test("status: the question, the verdict, and what speaks against it", async () => {
  const { watch, done, verdicts } = watchOf([good, bad("busy")], { failure: 1_000 });
  expect(watch.status()).toEqual({ probe: "TCP connect to 10.0.0.5:1", streak: 0, checks: 0 });
  await done();
  const status = watch.status();
  expect(status).toMatchObject({ healthy: true, message: "busy" });
  expect(status.streak).toBe(status.checks - 1);
  expect(verdicts.length).toBe(1);
});

test("the initial delay, and the end", async () => {
  const { watch, verdicts } = watchOf([good], { delay: 60 });
  await new Promise((resolve) => setTimeout(resolve, 20));
  expect(watch.status().checks).toBe(0);
  await until(() => verdicts.length === 1, "the verdict");
  watch.stop();
  const { checks } = watch.status();
  await new Promise((resolve) => setTimeout(resolve, 30));
  expect(watch.status().checks).toBe(checks);
});

test("a real question, and a stop while it is asked", async () => {
  const verdicts: Verdict[] = [];
  const watch = new HealthWatch({
    probe: parseProbe({ exec: { command: ["sh", "-c", "exit 1"] } }),
    address: "127.0.0.1",
    on: (verdict) => verdicts.push(verdict),
  });
  cleanups.push(() => watch.stop());
  watch.start();
  await until(() => verdicts.length === 1, "the verdict");
  expect(verdicts).toEqual([{ healthy: false, message: "sh ended with exit code 1" }]);
});
