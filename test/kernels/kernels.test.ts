/**
 * dist/kmesh on Debian's other kernels: each is booted and runs `smoke` and the flip stress test; one of them is booted
 * twice more, for `reboot`. With KMESH_TEST_WALK=1, two of them `walk`: that takes more than ten minutes. With
 * KMESH_TEST_ARM64=1 the cross-compiled executable runs `smoke` on an arm64 kernel: three minutes.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { FAULT_POINTS } from "../../src/runtime/fault.ts";
import { mapIteratorsRefused } from "../lab/map-iterators.ts";
import { otherBuild } from "../lab/other-build.ts";
import { run } from "../lab/process.ts";

const HERE = import.meta.dirname;
const ROOT = resolve(HERE, "../..");
const BUILT = join(ROOT, "dist/kmesh");
// Software emulation: ten times slower than the machine, and more while the verifier reads the programs.
const LIMIT = 1_500_000;
setDefaultTimeout(2 * LIMIT + 20_000);
const WALK_LIMIT = 3_000_000;
const ENVIRONMENT = [
  // Multiplies what the scripts wait for: several emulated machines share the processors with each other.
  ...["KMESH_LAB_PATIENCE=8", "KMESH_TEST_PATIENCE=8", "NO_COLOR=1"],
  // As kmesh sets it for itself by beginning anew. Optimised code costs more to make here than it saves.
  ...["BUN_JSC_forceRAMSize=167772160", "BUN_JSC_useDFGJIT=0"],
];
/** Of the tests that need iterators over maps, those that don't take minutes under emulation. */
const ITERATING =
  "stops counting|live connection is in the rows|long connection is logged|waits for accept|idle for longest";
const ITERATING_PASS = 11;
const refused = mapIteratorsRefused();
const walks = process.env.KMESH_TEST_WALK !== undefined;
if (!walks) console.warn("the kill test on other kernels is left out: KMESH_TEST_WALK=1 runs it");

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
async function onKernel(
  line: string,
  command: string[],
  { writable, limit = LIMIT }: { writable?: string; limit?: number } = {},
): Promise<string> {
  const { stdout, stderr } = await run([join(HERE, "boot"), line, ...command], {
    cwd: ROOT,
    timeoutMs: limit,
    env: { KERNEL_TIMEOUT: String(limit / 1000 - 10), ...(writable ? { KERNEL_RWDIR: writable } : {}) },
  });
  return `${stdout}${stderr}`.trim().split("\n").slice(-200).join("\n");
}

describe.skipIf("missing" in found)("other kernels", () => {
  // A copy of its own: a build meanwhile must not change the file under a machine that runs it.
  const folder = mkdtempSync(join(ROOT, "dist/kernels-"));
  const kmesh = join(folder, "kmesh");
  if (existsSync(BUILT)) copyFileSync(BUILT, kmesh);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  const lines = "lines" in found ? found.lines : [];

  /** Boots 6.12 twice; gives what both printed. */
  async function reboot(): Promise<string> {
    const [line = ""] = lines.find(([name]) => name === "6.12") ?? [];
    const state = join(folder, "state");
    mkdirSync(state);
    let text = "";
    for (const when of ["before", "after"]) {
      const env = ["env", ...ENVIRONMENT, `KMESH=${kmesh}`, `KMESH_LAB_STATE=${state}`];
      text += await onKernel(line, [...env, join(HERE, "reboot"), when], { writable: state });
    }
    return text;
  }

  /**
   * What runs on `line`: the smoke test, the flip stress test on two processors, and on Linux 7 what test/datapath leaves out where this machine's
   * kernel refuses iterators over maps. In one boot: the boot alone takes a third of the time.
   */
  function onLine(line: string): Promise<string> {
    const bun = process.execPath;
    const second = ["sh", "-c", "echo 1 >/sys/devices/system/cpu/cpu1/online"];
    const steps = [[join(HERE, "smoke")], second, [bun, join(ROOT, "test/stress/flip.ts"), "10"]];
    if (line === "7" && refused !== undefined) {
      const files = ["ended", "ageing", "traffic"].map((name) => `./test/datapath/${name}.test.ts`);
      steps.push([bun, "test", `--test-name-pattern=${ITERATING}`, ...files]);
    }
    const script = steps.map((step) => step.map((word) => `'${word}'`).join(" ")).join(" && ");
    return onKernel(line, ["env", ...ENVIRONMENT, `KMESH=${kmesh}`, "sh", "-c", script]);
  }

  /**
   * What the machine of each line printed, and "reboot". Three jobs at a time for two processors: an emulated machine keeps one
   * of them busy and waits a third of its time.
   */
  const printed = new Map<string, Promise<string>>();
  beforeAll(() => {
    // The longest first, so that none is alone at the end: Linux 7 with more tests than others, 5.10 with the slowest verifier.
    const last = ["7", "5.10", "reboot"].toReversed();
    const waiting = ["reboot", ...lines.map(([line]) => line).toReversed()].sort(
      (a, b) => last.indexOf(b) - last.indexOf(a),
    );
    const begin = waiting.map((name) => {
      const { promise, resolve: settle } = Promise.withResolvers<string>();
      promise.catch(() => {});
      printed.set(name, promise);
      return async () => {
        const result = name === "reboot" ? reboot() : onLine(name);
        settle(result);
        await result.catch(() => {});
      };
    });
    const lane = async (): Promise<void> => {
      for (let next = begin.shift(); next !== undefined; next = begin.shift()) await next();
    };
    void Promise.all([lane(), lane(), lane()]);
  });

  test.each(lines)("%s (%s): the smoke test, then services flip under connections", async (line, release) => {
    const text = (await printed.get(line)) ?? "";
    expect(text).toContain(`smoke: passed on ${release}`);
    const report: unknown = JSON.parse(/^\{.*\}$/m.exec(text)?.[0] ?? JSON.stringify({ text }));
    expect(report).toMatchObject({ misses: 0, mixtures: 0, errors: {} });
  });

  test("a reboot: bpffs is empty, istiod away, the snapshot governs", async () => {
    const text = (await printed.get("reboot")) ?? "";
    for (const when of ["before", "after"]) expect(text).toContain(`reboot: ${when} passed`);
  });

  if (refused !== undefined)
    test("7: connections are counted while they live, and rows age, which this machine's kernel refuses", async () => {
      const text = (await printed.get("7")) ?? "";
      expect([text, /^ *(\d+) pass$/m.exec(text)?.[1]]).toEqual([
        expect.stringMatching(/^ *0 fail$/m),
        String(ITERATING_PASS),
      ]);
    });

  test.skipIf(!walks)(
    "6.1 and 6.12: killed at every point, the agent recovers",
    async () => {
      const builds = join(folder, "builds");
      mkdirSync(join(builds, "wide-layout"), { recursive: true });
      copyFileSync(await otherBuild("wide-layout"), join(builds, "wide-layout/kmesh"));
      const command = ["env", `KMESH=${kmesh}`, `KMESH_OTHER_BUILDS=${builds}`, join(HERE, "walk")];
      const texts = await Promise.all(
        ["6.1", "6.12"].map((line) => onKernel(line, command, { limit: WALK_LIMIT })),
      );
      for (const text of texts) {
        const killed = [...text.matchAll(/^killed at ([\w.]+):/gm)].map(([, point]) => point);
        expect([killed.sort(), text]).toEqual([
          [...FAULT_POINTS].sort(),
          expect.stringMatching(/^\W*0 fail$/m),
        ]);
      }
    },
    WALK_LIMIT + 20_000,
  );
});

if (process.env.KMESH_TEST_ARM64 !== undefined)
  test("arm64: the smoke test of the cross-compiled executable", async () => {
    const steps: [command: string[], env: Record<string, string>][] = [
      [["build/setup", "--release=try"], {}],
      [["build/compile"], { TARGET: "arm64" }],
      [[join(HERE, "arm64")], {}],
    ];
    let text = "";
    for (const [command, env] of steps) {
      const { code, stdout, stderr } = await run(command, { cwd: ROOT, timeoutMs: 2 * LIMIT, env });
      text = `${stdout}${stderr}`;
      expect([command, code, text]).toEqual([command, 0, text]);
    }
    expect(text).toMatch(/^ *\d+ s {2}smoke: passed on \S+-arm64$/m);
  });
