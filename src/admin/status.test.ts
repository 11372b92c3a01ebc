import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type AgentStatus, readStatus, statusFile, writeStatus } from "./status.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-status-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("what is written is read; no file and a torn one are nothing", () => {
  const runDir = join(folder, "run");
  expect(readStatus(runDir)).toBeUndefined();
  const status = { pid: 7, writtenAt: "2026-01-01T00:00:00.000Z", version: "1" } as AgentStatus;
  writeStatus(runDir, status);
  expect(readStatus(runDir)).toEqual(status);
  writeFileSync(statusFile(runDir), '{"pid": 7, "wri');
  expect(readStatus(runDir)).toBeUndefined();
});
