/**
 * dist/kmesh on Debian's other kernels: each is booted and runs `smoke` and the flip stress test; one of them is booted
 * twice more, for `reboot`.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { run } from "../lab/process.ts";

const HERE = import.meta.dirname;
const ROOT = resolve(HERE, "../..");
const BUILT = join(ROOT, "dist/kmesh");
// Software emulation: ten times slower than the machine.
const LIMIT = 600_000;
setDefaultTimeout(2 * LIMIT + 20_000);

/** Each line of kernels with the newest release of it that was fetched, or why there are none. */
function kernels(): { lines: [line: string, release: string][] } | { missing: string } {
  if (!existsSync(BUILT)) return { missing: "dist/kmesh is missing: run ./build/compile" };
  const result = spawnSync(join(HERE, "fetch"), { encoding: "utf8" });
  if (result.status !== 0) return { missing: result.stderr.trim().split("\n").at(-1) ?? "fetch failed" };
  const lines = result.stdout.trim().split("\n");
  return { lines: lines.map((line) => line.split(" ") as [string, string]) };
}

const found = kernels();
if ("missing" in found) console.warn(`other kernels are skipped: ${found.missing}`);

/** Runs `command` on a booted kernel; gives the end of what it printed. */
async function onKernel(line: string, command: string[], writable?: string): Promise<string> {
  const { stdout, stderr } = await run([join(HERE, "boot"), line, ...command], {
    cwd: ROOT,
    timeoutMs: LIMIT,
    env: { KERNEL_TIMEOUT: String(LIMIT / 1000 - 10), ...(writable ? { KERNEL_RWDIR: writable } : {}) },
  });
  return `${stdout}${stderr}`.trim().split("\n").slice(-60).join("\n");
}

describe.skipIf("missing" in found)("other kernels", () => {
  // A copy of its own: a build meanwhile must not change the file under a machine that runs it.
  const folder = mkdtempSync(join(ROOT, "dist/kernels-"));
  const kmesh = join(folder, "kmesh");
  if (existsSync(BUILT)) copyFileSync(BUILT, kmesh);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  const lines = "lines" in found ? found.lines : [];

  /** What the machine of each line printed. Two at a time: an emulated one keeps little more than a core busy. */
  const printed = new Map<string, Promise<string>>();
  beforeAll(() => {
    // One boot for both: the machine itself takes a third of the time.
    const both = '"$0" && exec "$1" "$2" 10';
    const flip = join(ROOT, "test/stress/flip.ts");
    const command = ["env", `KMESH=${kmesh}`, "sh", "-c", both, join(HERE, "smoke"), process.execPath, flip];
    const lanes = [Promise.resolve(""), Promise.resolve("")];
    lines.forEach(([line], i) => {
      const before = lanes[i % lanes.length] ?? Promise.resolve("");
      const text = before.catch(() => "").then(() => onKernel(line, command));
      text.catch(() => {});
      printed.set(line, text);
      lanes[i % lanes.length] = text;
    });
  });

  test.each(lines)("%s (%s): the smoke test, then services flip under connections", async (line, release) => {
    const text = (await printed.get(line)) ?? "";
    expect(text).toContain(`smoke: passed on ${release}`);
    const report: unknown = JSON.parse(/^\{.*\}$/m.exec(text)?.[0] ?? JSON.stringify({ text }));
    expect(report).toMatchObject({ misses: 0, mixtures: 0, errors: {} });
  });

  test("a reboot: bpffs is empty, istiod away, the snapshot governs", async () => {
    const [line = ""] = lines.find(([name]) => name === "6.12") ?? [];
    const state = join(folder, "state");
    mkdirSync(state);
    for (const when of ["before", "after"]) {
      const env = ["env", `KMESH=${kmesh}`, `KMESH_LAB_STATE=${state}`];
      const text = await onKernel(line, [...env, join(HERE, "reboot"), when], state);
      expect(text).toContain(`reboot: ${when} passed`);
    }
  });
});
