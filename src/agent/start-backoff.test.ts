import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { delayAfter, StartBackoff } from "./start-backoff.ts";

let folder: string;
let config: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-backoff-"));
  config = join(folder, "config.yaml");
});
afterEach(() => rmSync(folder, { recursive: true }));

const backoff = () => {
  const found = StartBackoff.of({ NOTIFY_SOCKET: "/run/systemd/notify", RUNTIME_DIRECTORY: folder });
  if (!found) throw new Error("systemd runs it");
  return found;
};
/** Waits; returns the duration in milliseconds and the report. */
async function waited(stopped = new AbortController().signal): Promise<{ ms: number; told: string[] }> {
  const told: string[] = [];
  const begin = performance.now();
  await backoff().wait((text) => told.push(text), stopped);
  return { ms: performance.now() - begin, told };
}

test("starts come 2, 4, 8, 16 and then 30 s apart, 2 of them systemd's own", () => {
  expect([0, 1, 2, 3, 4, 5, 6, 50, 5000].map(delayAfter)).toEqual([
    0, 0, 2_000, 6_000, 14_000, 28_000, 28_000, 28_000, 28_000,
  ]);
});

test("only where systemd runs the agent", () => {
  expect(StartBackoff.of({})).toBeUndefined();
  expect(StartBackoff.of({ NOTIFY_SOCKET: "/x" })).toBeUndefined();
});

test("after the second failure in a row it waits, until what was missing is there", async () => {
  backoff().failed([config]);
  expect(await waited()).toMatchObject({ told: [] });
  backoff().failed([config]);
  setTimeout(() => writeFileSync(config, "istiod: a:1"), 300);
  const { ms, told } = await waited();
  expect(told).toEqual([`The last 2 starts failed: this one waits 2 s, or until ${config} changes`]);
  expect(ms).toBeGreaterThan(250);
  expect(ms).toBeLessThan(1_500);
  // A change before the start ends the wait at once.
  expect((await waited()).told).toEqual([]);
});

test("a start that is stopped, one that went well, and one that somebody asked for begin anew", async () => {
  for (let i = 0; i < 5; i++) backoff().failed([]);
  const stop = new AbortController();
  setTimeout(() => stop.abort(), 100);
  expect((await waited(stop.signal)).ms).toBeLessThan(1_500);
  expect(readdirSync(folder)).toEqual([]);

  backoff().failed([]);
  backoff().succeeded();
  expect(readdirSync(folder)).toEqual([]);

  for (const at of [Date.now() - 60_000, Date.now() + 60_000]) {
    writeFileSync(join(folder, "failed-starts.json"), JSON.stringify({ count: 9, at, seen: {} }));
    expect(await waited()).toMatchObject({ told: [] });
  }
  writeFileSync(join(folder, "failed-starts.json"), "{");
  expect(await waited()).toMatchObject({ told: [] });
});
