import { afterAll, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatRecord, isFailure, type LogRecord, matches } from "./access-log.ts";
import { LogTarget } from "./log-target.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-access-log-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A writer's work is done by threads: within five seconds, on a machine that is busy. */
async function until(is: () => boolean): Promise<void> {
  const end = performance.now() + 5_000;
  while (!is()) {
    if (performance.now() > end) throw new Error("it did not come about in time");
    await Bun.sleep(10);
  }
}

const record: LogRecord = {
  time: "2026-01-01T00:00:00.000Z",
  direction: "out",
  unit: "shop.service",
  pid: 42,
  service: "cart.shop.svc.cluster.local:80",
  asked: "10.96.0.1:80",
  peer: "10.0.0.1:8080",
  workload: "cart-v1",
  duration_ms: 12.5,
  sent: 100,
  received: 200,
  retransmits: 0,
  rtt_us: 250,
  end: "closed",
  reason: "",
};

test("a line", () => {
  expect(formatRecord(record)).toBe(
    "2026-01-01T00:00:00.000Z out shop.service[42] cart.shop.svc.cluster.local:80 at 10.0.0.1:8080 (cart-v1) closed 12.5ms sent=100 received=200 rtt=250us",
  );
  expect(
    formatRecord({
      ...record,
      direction: "in",
      service: "",
      peer: "10.0.0.9 on port 80",
      duration_ms: null,
      rtt_us: null,
    }),
  ).toContain(" in shop.service[42] from 10.0.0.9 on port 80 (cart-v1) closed sent=100");
});

test("names can't forge lines", () => {
  const line = formatRecord({ ...record, unit: 'a"\n2026 fake\u001b[31m\\', workload: "\u0085x" });
  expect(line.split("\n").length).toBe(1);
  expect(line).toContain("a\\x22\\x0a2026 fake\\x1b[31m\\x5c[42]");
  expect(line).toContain("(\\x85x)");
});

test("filters", () => {
  const all = { failures: false, services: [], units: [] };
  expect(matches(record, all)).toBe(true);
  expect(matches(record, { ...all, failures: true })).toBe(false);
  expect(matches({ ...record, end: "timed-out" }, { ...all, failures: true })).toBe(true);
  expect(matches(record, { ...all, services: ["cart.shop.svc.cluster.local"] })).toBe(true);
  expect(matches(record, { ...all, services: ["cart.shop.svc.cluster.local:81"] })).toBe(false);
  expect(matches(record, { ...all, units: ["other.service"] })).toBe(false);
  expect(["refused", "timed-out", "unreachable", "reset", "refused-on-purpose"].every(isFailure)).toBe(true);
  expect(["closed", "aborted", "live", "reused"].some(isFailure)).toBe(false);
});

test("lines reach a file", async () => {
  const path = join(folder, "log");
  const target = new LogTarget(path, () => undefined);
  for (let i = 0; i < 3; i++) target.write(`line ${i}`);
  target.close();
  await until(() => existsSync(path) && readFileSync(path, "utf8") === "line 0\nline 1\nline 2\n");
});

test("a full disk drops lines, counts them and says so once", async () => {
  const warnings: string[] = [];
  const target = new LogTarget("/dev/full", (line) => warnings.push(line));
  await until(() => {
    target.write("line");
    target.flush();
    return target.dropped > 0;
  });
  target.close();
  expect(warnings.length).toBe(1);
  expect(warnings[0]).toContain("/dev/full: ");
  expect(target.dropped).toBeGreaterThan(0);
});

test("a reader that stalls costs a megabyte and nobody's time", async () => {
  const path = join(folder, "pipe");
  execFileSync("mkfifo", [path]);
  const target = new LogTarget(path, () => undefined);
  const began = performance.now();
  for (let i = 0; i < 30_000; i++) {
    target.write("x".repeat(100));
    if (i % 1000 === 0) target.flush();
  }
  expect(performance.now() - began).toBeLessThan(4000);
  expect(target.dropped).toBeGreaterThan(10_000);
  // Somebody has to open the other end, or the process would wait for it at its end.
  const reader = Bun.spawn(["cat", path], { stdout: "ignore" });
  await Bun.sleep(50);
  target.close();
  await Bun.sleep(50);
  reader.kill();
});
