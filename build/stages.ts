/**
 * Runs the tests stage by stage and sums them up. Run by build/test.
 *
 * A stage is a folder of test/ with bun tests, or the unit tests beside the sources. Each stage runs in its own process, so that
 * a crash affects only that stage. Most tests wait more than they compute, so two stages run side by side.
 */
import { spawn } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { belongings, MARK } from "./belongings.ts";

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
process.chdir(ROOT);

/** Stages that --quick leaves out, with the script that fetches or builds their tools. Exit code 3: not possible here. */
const SLOW: Readonly<Record<string, string>> = {
  "test/envoy": "test/envoy/fetch",
  "test/interop": "test/control-plane/build",
  "test/kernels": "test/kernels/fetch",
  "test/release": "test/release/fetch",
  "test/systemd": "test/systemd/fetch",
};

const UNITS = "units";
/** Begin first: the unit tests, which tell soonest what is wrong, then the longest stages, so that both rows end together. */
const FIRST: readonly string[] = [
  UNITS,
  "test/interop",
  "test/e2e",
  "test/continuity",
  "test/datapath",
  "test/systemd",
  "test/release",
  "test/names",
];
/** Opt-in: they need a program that nothing fetches. Each says what, and how to run it. */
const BY_HAND: readonly string[] = ["test/ztunnel"];
/** Stages that run after all others, because they need the whole machine. */
const ALONE: readonly string[] = ["test/stress", "test/kernels"];

type Print = (text: string) => void;

interface Sum {
  passed: number;
  failed: number;
  skipped: number;
}

const quick = process.argv.includes("--quick");
const total: Sum = { passed: 0, failed: 0, skipped: 0 };
const scratch = mkdtempSync(join(tmpdir(), "kmesh-test-"));
/** Marks of our own leftovers, to tell them from those of other programs. */
const pids = new Set<number>();
const own = { mark: `${process.pid}-${Date.now()}`, folder: join(scratch, "tmp"), pids };
mkdirSync(own.folder);
// Some tests let other users read folders below it.
for (const folder of [scratch, own.folder]) chmodSync(folder, 0o755);
const running = new Set<ReturnType<typeof spawn>>();
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    for (const child of running) child.kill("SIGINT");
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
  const before = belongings(own);

  heading("static checks");
  await command("types (tsc)", process.execPath, ["node_modules/.bin/tsc", "--noEmit"]);
  const page = ["node_modules/.bin/tsc", "--noEmit", "-p", "src/topology/page"];
  await command("types of the page (tsc)", process.execPath, page);
  await command("style (biome)", process.execPath, [
    "node_modules/.bin/biome",
    "check",
    "--error-on-warnings",
    ".",
  ]);

  const folders = readdirSync("test", { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && hasTests(join("test", entry.name)))
    .map((entry) => join("test", entry.name))
    .filter((folder) => !BY_HAND.includes(folder))
    .sort();
  const stages = [UNITS, ...folders];
  const alone = ALONE.filter((name) => stages.includes(name));
  const waiting = [
    ...FIRST.filter((name) => stages.includes(name)),
    ...stages.filter((name) => !FIRST.includes(name) && !alone.includes(name)),
  ];
  await Promise.all([row(waiting), row(waiting)]);
  for (const folder of alone) await stage(folder, print);

  heading("the machine is as before");
  let left = belongings(own).filter((thing) => !before.includes(thing));
  // The kernel frees a program a moment after its last reference.
  for (let tries = 0; left.length > 0 && tries < 20; tries++) {
    await new Promise((later) => setTimeout(later, 500));
    left = belongings(own).filter((thing) => left.includes(thing));
  }
  for (const thing of left) console.log(`left behind: ${thing}`);
  count(left.length === 0);
}

/** Runs one stage that waits after the other. The output of each appears at its end, because another row prints, too. */
async function row(waiting: string[]): Promise<void> {
  for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
    print(`\n${name} begins\n`);
    let text = "";
    await stage(name, (part) => {
      text += part;
    });
    print(text);
  }
}

async function stage(folder: string, print: Print): Promise<void> {
  if (folder === UNITS) return tests(UNITS, ["./src", "./build"], print);
  const prepare = SLOW[folder];
  if (prepare !== undefined && quick) {
    print(`\n== ${folder}\nleft out by --quick\n`);
    total.skipped++;
    return;
  }
  if (prepare !== undefined && existsSync(prepare) && !(await prepared(folder, prepare, print))) return;
  await tests(folder, [`./${folder}`], print);
}

/** Runs the script of a stage; false when the stage can't run. */
async function prepared(folder: string, script: string, print: Print): Promise<boolean> {
  print(`\n== ${folder}: ${script}\n`);
  const code = await run(script, [], print);
  if (code === 0) return true;
  // The script has printed the reason.
  if (code === 3) total.skipped++;
  else count(false);
  return false;
}

async function tests(name: string, paths: string[], print: Print): Promise<void> {
  print(`\n== ${name}\n`);
  const started = performance.now();
  const report = join(scratch, `${name.replaceAll("/", "-")}.xml`);
  const code = await run(
    process.execPath,
    [
      "test",
      // The default time limit of a test is generous, because stages share the processors.
      "--timeout=30000",
      "--reporter=junit",
      `--reporter-outfile=${report}`,
      "--only-failures",
      ...paths,
    ],
    print,
  );
  const sum = existsSync(report) ? readReport(readFileSync(report, "utf8")) : undefined;
  const { passed, failed, skipped } = sum ?? { passed: 0, failed: 0, skipped: 0 };
  total.passed += passed;
  // A crash, or an error outside of every test, leaves no failure in the report.
  total.failed += code !== 0 && failed === 0 ? 1 : failed;
  total.skipped += skipped;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  print(`${name}: ${passed} passed, ${failed} failed, ${skipped} skipped in ${seconds} s\n`);
  if (code !== 0 && failed === 0) print(`${name}: bun test ended with exit code ${code}\n`);
}

/** The sums in the root element of a JUnit report. */
function readReport(xml: string): Sum | undefined {
  const root = /<testsuites\b[^>]*>/.exec(xml)?.[0];
  if (root === undefined) return undefined;
  const number = (name: string): number => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(root)?.[1] ?? 0);
  const failed = number("failures") + number("errors");
  const skipped = number("skipped");
  return { passed: number("tests") - failed - skipped, failed, skipped };
}

async function command(name: string, program: string, parameters: string[]): Promise<void> {
  const code = await run(program, parameters, print);
  console.log(`${name}: ${code === 0 ? "passed" : "failed"}`);
  count(code === 0);
}

function count(passed: boolean): void {
  if (passed) total.passed++;
  else total.failed++;
}

/** The exit code; 1 when the command could not start or was killed by a signal. */
function run(program: string, parameters: string[], print: Print): Promise<number> {
  return new Promise((done) => {
    const child = spawn(program, parameters, {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, TMPDIR: own.folder, [MARK]: own.mark },
    });
    running.add(child);
    if (child.pid !== undefined) pids.add(child.pid);
    const end = (code: number) => {
      running.delete(child);
      done(code);
    };
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8");
      stream.on("data", print);
    }
    child.once("error", (error) => {
      print(`${error.message}\n`);
      end(1);
    });
    child.once("exit", (code) => {
      // A process that a test left behind may still hold the other end of the pipe.
      const late = setTimeout(() => end(code ?? 1), 5_000);
      child.once("close", () => {
        clearTimeout(late);
        end(code ?? 1);
      });
    });
  });
}

function hasTests(folder: string): boolean {
  return readdirSync(folder, { recursive: true, encoding: "utf8" }).some((file) => file.endsWith(".test.ts"));
}

function heading(text: string): void {
  console.log(`\n== ${text}`);
}

function print(text: string): void {
  process.stdout.write(text);
}
