import { afterAll, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type AgentStatus, readStatus, statusFile } from "../admin/status.ts";
import { StatusFile } from "./status-file.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-status-file-"));
afterAll(() => rmSync(folder, { recursive: true }));

let writes = 0;
let ours = true;
let lines: string[] = [];
let folders = 0;

beforeEach(() => {
  writes = 0;
  ours = true;
  lines = [];
});

function open(runDir = join(folder, `${folders++}`)) {
  const file = new StatusFile(
    {
      runDir,
      log: {
        warn: (text: string) => lines.push(`warn ${text}`),
        debug: (text: string) => lines.push(`debug ${text}`),
      },
      status: () => ({ pid: ++writes, writtenAt: "now" }) as AgentStatus,
      owns: () => ours,
      heard: ({ pid }) => lines.push(`heard ${pid}`),
    },
    { news: 20, numbers: 60_000 },
  );
  return { file, runDir };
}

const pause = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

test("many changes are one write, as soon as the most urgent wants it", async () => {
  const { file, runDir } = open();
  file.changed("numbers");
  file.changed("news");
  file.changed("numbers");
  file.changed("news");
  expect(existsSync(statusFile(runDir))).toBe(false);
  await pause(200);
  expect(readStatus(runDir)?.pid).toBe(1);
  expect(lines).toEqual(["heard 1"]);
});

test("a write of now takes along what was to be written later", async () => {
  const { file, runDir } = open();
  file.changed("news");
  file.write();
  expect(readStatus(runDir)?.pid).toBe(1);
  await pause(100);
  expect(writes).toBe(1);
  file.changed("news");
  file.stop();
  await pause(100);
  expect(writes).toBe(1);
});

test("while the tables are another's the file is, too", () => {
  const { file, runDir } = open();
  ours = false;
  file.write();
  expect(lines).toEqual(["heard 1"]);
  expect(existsSync(statusFile(runDir))).toBe(false);
});

test("a file that can't be written is complained of once, until it can", () => {
  const path = join(folder, "in-the-way");
  writeFileSync(path, "");
  const { file } = open(path);
  file.write();
  file.write();
  rmSync(path);
  file.write();
  rmSync(path, { recursive: true });
  writeFileSync(path, "");
  file.write();
  expect(lines.filter((line) => !line.startsWith("heard")).map((line) => line.split(" ")[0])).toEqual([
    "warn",
    "debug",
    "warn",
  ]);
});
