import { afterAll, expect, spyOn, test } from "bun:test";
import { execFileSync, spawnSync } from "node:child_process";
import {
  closeSync,
  constants,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LogTarget } from "./log-target.ts";
import { formatRecord, isFailure, type LogRecord, matches } from "./record.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-access-log-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A writer's work is done by threads: within five seconds, on a machine that is busy. */
async function until(is: () => boolean): Promise<void> {
  const end = Date.now() + 5_000;
  while (!is()) {
    if (Date.now() > end) throw new Error("it did not come about in time");
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
  mutual_tls: false,
  principal: "",
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
  const principal = "spiffe://cluster.local/ns/shop/sa/cart";
  expect(formatRecord({ ...record, mutual_tls: true, principal })).toContain(
    `(cart-v1) mtls=${principal} closed`,
  );
  expect(formatRecord({ ...record, mutual_tls: true })).toContain("(cart-v1) mtls=unknown closed");
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

const dropText = (count: number) => `${count} missing`;

test("lines reach a file", async () => {
  const path = join(folder, "log");
  const target = new LogTarget(path, () => undefined, dropText);
  for (let i = 0; i < 3; i++) target.write(`line ${i}`);
  target.close();
  expect(readFileSync(path, "utf8")).toBe("line 0\nline 1\nline 2\n");
});

/** Flushes until nothing changes any more that `done` waits for. */
const flushUntil = (target: LogTarget, done: () => boolean) =>
  until(() => {
    target.flush();
    return done();
  });

test.skipIf(process.getuid?.() !== 0)(
  "a full disk of 64 KB drops lines and says so once; the line that it cut is whole, and the count is in the file",
  async () => {
    const disk = join(folder, "disk");
    mkdirSync(disk);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "kmesh-log-test", disk]);
    let now = performance.now();
    const clock = spyOn(performance, "now").mockImplementation(() => now);
    try {
      const path = join(disk, "log");
      const ballast = join(disk, "ballast");
      writeFileSync(ballast, "b".repeat(20_000));
      const warnings: string[] = [];
      const target = new LogTarget(path, (line) => warnings.push(line), dropText);
      const lines = Array.from({ length: 1000 }, (_, i) => `line ${i} ${"x".repeat(90)}`);
      for (const line of lines.slice(0, 900)) target.write(line);
      await flushUntil(target, () => target.dropped > 0);
      const { dropped } = target;
      expect(warnings).toEqual([
        `the access log can't be written to ${path}: ENOSPC: no space left on device, write. Lines are dropped; next try in 5 s`,
      ]);
      const whole = readFileSync(path, "utf8").split("\n").length - 1;
      // All but the one that was cut, which waits.
      expect(dropped).toBe(900 - whole - 1);
      rmSync(ballast);
      now += 6_000;
      target.write(lines[900] ?? "");
      await flushUntil(target, () => readFileSync(path, "utf8").endsWith("missing\n"));
      target.close();
      expect(readFileSync(path, "utf8").split("\n")).toEqual([
        ...lines.slice(0, whole + 1),
        lines[900] ?? "",
        `${dropped} missing`,
        "",
      ]);
      expect(warnings.length).toBe(1);
    } finally {
      clock.mockRestore();
      // The last write may still be on its way back.
      await until(() => spawnSync("umount", [disk]).status === 0);
    }
  },
);

test("a pipe that nobody reads is no error that holds anybody up, and a reader that stalls costs a megabyte", async () => {
  const path = join(folder, "pipe");
  execFileSync("mkfifo", [path]);
  let now = performance.now();
  const clock = spyOn(performance, "now").mockImplementation(() => now);
  try {
    const warnings: string[] = [];
    const target = new LogTarget(path, (line) => warnings.push(line), dropText);
    target.write("first");
    target.flush();
    expect(warnings.length).toBe(1);
    expect(warnings[0]).toContain("ENXIO");
    now += 6_000;
    // It opens, and does not read.
    const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const lines = Array.from({ length: 30_000 }, (_, i) => `line ${i} ${"x".repeat(90)}`);
    const began = process.hrtime.bigint();
    for (const line of lines) {
      target.write(line);
      target.flush();
      if (line.endsWith("000")) await Bun.sleep(0);
    }
    expect(Number(process.hrtime.bigint() - began) / 1e6).toBeLessThan(4_000);
    const { dropped } = target;
    expect(dropped).toBeGreaterThan(10_000);
    // It reads again.
    let text = "";
    const buffer = Buffer.alloc(1 << 16);
    await flushUntil(target, () => {
      try {
        text += buffer.toString("utf8", 0, readSync(reader, buffer));
      } catch {
        // Empty for the moment.
      }
      return text.endsWith("missing\n");
    });
    target.close();
    closeSync(reader);
    const got = text.trimEnd().split("\n");
    expect(got.slice(0, -1)).toEqual(["first", ...lines.slice(0, got.length - 2)]);
    expect(got.at(-1)).toBe(`${dropped} missing`);
    expect(got.length - 2 + dropped).toBe(lines.length);
  } finally {
    clock.mockRestore();
  }
});
