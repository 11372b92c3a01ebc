import { expect, test } from "bun:test";
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { belongings, isNamedAfter, MARK } from "./belongings.ts";

test("what is named after a process of the run is the run's, and nobody else's", () => {
  const pids = new Set([12345, 999_999]);
  const own = `km${(12345).toString(36)}1d`;
  expect(isNamedAfter(own, pids)).toBe(true);
  for (const stranger of [
    "kmesh",
    `km${(54321).toString(36)}1d`,
    "cilium_globals",
    "kmesh-e2e",
    "kube-ipvs0",
  ])
    expect([stranger, isNamedAfter(stranger, pids)]).toEqual([stranger, false]);
  // Of somebody who works at the same time, in another pid namespace perhaps.
  for (const pid of [process.pid, 4_194_305]) expect(isNamedAfter(`kmesh-demo-${pid}`, pids)).toBe(false);
});

test("folders of the run's TMPDIR and processes with its mark are found; with their end they are not", async () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-belongings-"));
  const run = { mark: `test-${process.pid}`, folder: join(folder, "tmp"), pids: new Set<number>() };
  mkdirSync(run.folder);
  const left = spawn("sleep", ["60"], { env: { ...process.env, [MARK]: run.mark } });
  const stranger = spawn("sleep", ["60"], { env: { ...process.env, [MARK]: `${run.mark}0` } });
  const ended = new Promise((done) => left.once("exit", done));
  try {
    // A file of nobody's run, beside it.
    writeFileSync(join(folder, "kmesh-other"), "");
    mkdirSync(join(run.folder, "kmesh-e2e-1"));
    expect(belongings(run)).toEqual([
      `folder ${join(run.folder, "kmesh-e2e-1")}`,
      `process ${left.pid} (sleep 60)`,
    ]);
    left.kill("SIGKILL");
    await ended;
    rmSync(join(run.folder, "kmesh-e2e-1"), { recursive: true });
    expect(belongings(run)).toEqual([]);
  } finally {
    left.kill("SIGKILL");
    stranger.kill("SIGKILL");
    rmSync(folder, { recursive: true });
  }
});
