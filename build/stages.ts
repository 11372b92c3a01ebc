/**
 * Runs the tests stage by stage and sums them up. Run by build/test.
 *
 * A stage is a folder of bun tests; every folder of test/ that has some is one. Each runs in a process of its own, so that
 * a crash is that stage's alone.
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
process.chdir(ROOT);

/** Left out by --quick, with the script that fetches or builds what they need; its exit code 3 means: not possible here. */
const SLOW: Readonly<Record<string, string>> = {
  "test/interop": "test/control-plane/build",
  "test/kernels": "test/kernels/fetch",
  "test/systemd": "test/systemd/fetch",
};

interface Sum {
  passed: number;
  failed: number;
  skipped: number;
}

const quick = process.argv.includes("--quick");
const total: Sum = { passed: 0, failed: 0, skipped: 0 };
const scratch = mkdtempSync(join(tmpdir(), "kmesh-test-"));
let running: ReturnType<typeof spawn> | undefined;
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    running?.kill("SIGINT");
    process.exitCode = 130;
  });

try {
  await runAll();
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
process.exit(process.exitCode ?? (total.failed === 0 ? 0 : 1));

async function runAll(): Promise<void> {
  const before = belongings();

  heading("static checks");
  await command("types (tsc)", process.execPath, ["node_modules/.bin/tsc", "--noEmit"]);
  await command("style (biome)", process.execPath, [
    "node_modules/.bin/biome",
    "check",
    "--error-on-warnings",
    ".",
  ]);

  await tests("units", ["./src", "./build"]);
  const folders = readdirSync("test", { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && hasTests(join("test", entry.name)))
    .map((entry) => join("test", entry.name))
    .sort((a, b) => Number(a in SLOW) - Number(b in SLOW) || (a < b ? -1 : 1));
  for (const folder of folders) {
    const prepare = SLOW[folder];
    if (prepare !== undefined) {
      if (quick) {
        heading(folder);
        console.log("left out by --quick");
        total.skipped++;
        continue;
      }
      if (existsSync(prepare) && !(await prepared(folder, prepare))) continue;
    }
    await tests(folder, [`./${folder}`]);
  }

  heading("the machine is as before");
  let left = belongings().filter((thing) => !before.includes(thing));
  // The kernel lets go of a program a moment after the last who held it.
  for (let tries = 0; left.length > 0 && tries < 20; tries++) {
    await new Promise((later) => setTimeout(later, 500));
    left = belongings().filter((thing) => left.includes(thing));
  }
  for (const thing of left) console.log(`left behind: ${thing}`);
  count(left.length === 0);
}

/** Runs the script that a stage needs; false when the stage can't run. */
async function prepared(folder: string, script: string): Promise<boolean> {
  heading(`${folder}: ${script}`);
  const code = await run(script, []);
  if (code === 0) return true;
  // The script has said why.
  if (code === 3) total.skipped++;
  else count(false);
  return false;
}

async function tests(name: string, paths: string[]): Promise<void> {
  heading(name);
  const started = performance.now();
  const report = join(scratch, "report.xml");
  rmSync(report, { force: true });
  const code = await run(process.execPath, [
    ...["test", "--reporter=junit", `--reporter-outfile=${report}`, "--only-failures", ...paths],
  ]);
  const sum = existsSync(report) ? readReport(readFileSync(report, "utf8")) : undefined;
  const { passed, failed, skipped } = sum ?? { passed: 0, failed: 0, skipped: 0 };
  total.passed += passed;
  // A crash, or an error outside of every test, leaves no failure in the report.
  total.failed += code !== 0 && failed === 0 ? 1 : failed;
  total.skipped += skipped;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(`${name}: ${passed} passed, ${failed} failed, ${skipped} skipped in ${seconds} s`);
  if (code !== 0 && failed === 0) console.log(`${name}: bun test ended with exit code ${code}`);
}

/** The sums that stand in the root element of a JUnit report. */
function readReport(xml: string): Sum | undefined {
  const root = /<testsuites\b[^>]*>/.exec(xml)?.[0];
  if (root === undefined) return undefined;
  const number = (name: string): number => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(root)?.[1] ?? 0);
  const failed = number("failures") + number("errors");
  const skipped = number("skipped");
  return { passed: number("tests") - failed - skipped, failed, skipped };
}

async function command(name: string, program: string, parameters: string[]): Promise<void> {
  const code = await run(program, parameters);
  console.log(`${name}: ${code === 0 ? "passed" : "failed"}`);
  count(code === 0);
}

function count(passed: boolean): void {
  if (passed) total.passed++;
  else total.failed++;
}

/** The exit code; 1 when it could not be started or died of a signal. */
function run(program: string, parameters: string[]): Promise<number> {
  return new Promise((done) => {
    running = spawn(program, parameters, { stdio: ["ignore", "inherit", "inherit"] });
    running.once("error", (error) => {
      console.log(error.message);
      done(1);
    });
    running.once("exit", (code) => done(code ?? 1));
  });
}

function hasTests(folder: string): boolean {
  return readdirSync(folder, { recursive: true, encoding: "utf8" }).some((file) => file.endsWith(".test.ts"));
}

/** What tests could leave on the machine: pins, links, namespaces, cgroups of ours. */
function belongings(): string[] {
  const lines = (program: string, ...parameters: string[]): string[] =>
    (spawnSync(program, parameters, { encoding: "utf8" }).stdout ?? "")
      .split("\n")
      .filter((line) => line !== "");
  return [
    ...lines("find", "/sys/fs/bpf", "-mindepth", "1").map((path) => `pin ${path}`),
    ...lines("bpftool", "link", "list")
      .filter((line) => /^\d+:/.test(line))
      .map((line) => `link ${line}`),
    ...lines("ip", "netns", "list").map((line) => `network namespace ${line}`),
    ...lines("find", "/sys/fs/cgroup", "-type", "d", "-iname", "*kmesh*").map((path) => `cgroup ${path}`),
  ];
}

function heading(text: string): void {
  console.log(`\n== ${text}`);
}
