/** dist/kmesh on Debian's other kernels: each is booted and runs `smoke` and the flip stress test. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdtempSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { run } from "../lab/process.ts";

const HERE = import.meta.dirname;
const ROOT = resolve(HERE, "../..");
const BUILT = join(ROOT, "dist/kmesh");
// Software emulation: ten times slower than the machine.
const LIMIT = 600_000;
setDefaultTimeout(LIMIT + 10_000);

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
async function onKernel(line: string, ...command: string[]): Promise<string> {
  const { stdout, stderr } = await run([join(HERE, "boot"), line, ...command], {
    cwd: ROOT,
    timeoutMs: LIMIT,
    env: { KERNEL_TIMEOUT: String(LIMIT / 1000 - 10) },
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

  test.each(lines)("%s (%s): the smoke test", async (line, release) => {
    expect(await onKernel(line, "env", `KMESH=${kmesh}`, join(HERE, "smoke"))).toEndWith(
      `smoke: passed on ${release}`,
    );
  });

  test.each(lines)("%s (%s): services flip under connections", async (line) => {
    const text = await onKernel(line, process.execPath, join(ROOT, "test/stress/flip.ts"), "20");
    const report: unknown = JSON.parse(/^\{.*\}$/m.exec(text)?.[0] ?? JSON.stringify({ text }));
    expect(report).toMatchObject({ misses: 0, mixtures: 0, errors: {} });
  });
});
