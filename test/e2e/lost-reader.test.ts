/** A reader that goes away, or a full disk behind standard output: the work is done, and the exit code tells of it. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { COMMANDS } from "../../src/cli/commands.ts";
import { loadAll } from "../../src/cli/framework/command.ts";
import { run } from "../lab/process.ts";
import { KMESH, missing } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: lost readers: ${why}`);

const folder = mkdtempSync(join(tmpdir(), "kmesh-reader-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const config = join(folder, "config.yaml");
const wrong = join(folder, "wrong.yaml");
writeFileSync(config, "istiod: a:1\nplaintext: true\nunit: []\n");
writeFileSync(wrong, "log-level: loud\n");

const folders = [
  `--bpffs=/sys/fs/bpf/kmesh-reader-${process.pid}`,
  `--state-dir=${folder}/state`,
  `--run-dir=${folder}/run`,
];

/** A way to run every command that ends soon, and the exit code that it has to have. ROOT is a fresh folder. */
const WAYS: Record<string, [args: string[], code: number][]> = {
  run: [[["run", "--config", wrong, ...folders], 2]],
  tunnel: [[["tunnel", "--drain-timeout=never", ...folders], 2]],
  status: [
    [["status", ...folders], 3],
    [["status", "-o", "json", ...folders], 3],
  ],
  cert: [[["cert", ...folders], 1]],
  doctor: [[["doctor", "--config", wrong, ...folders], 1]],
  dump: [[["dump", "tables", ...folders], 3]],
  topology: [[["topology", "--watch", ...folders], 3]],
  top: [[["top", ...folders], 3]],
  log: [[["log", ...folders], 3]],
  explain: [[["explain", "10.0.0.1:80", "-o", "json", ...folders], 3]],
  resolve: [[["resolve", "shop.demo.internal", ...folders], 3]],
  enrol: [[["enrol", "none.service", "--dry-run", "--config", config, ...folders], 0]],
  unenrol: [[["unenrol", "none.service", "--dry-run", "--config", config, ...folders], 0]],
  wait: [[["wait", "--timeout=0", ...folders], 8]],
  restart: [[["restart", ...folders], 3]],
  upgrade: [[["upgrade", KMESH, ...folders], 3]],
  rollback: [[["rollback", ...folders], 3]],
  history: [[["history", ...folders], 0]],
  "log-level": [[["log-level", ...folders], 3]],
  down: [[["down", "--yes", ...folders], 0]],
  install: [[["install", "--root", "ROOT"], 0]],
  uninstall: [[["uninstall", "--yes", "--root", "ROOT"], 0]],
  join: [[["join", "--from", folder, "--config", config, ...folders], 1]],
  config: [[["config", "check", wrong], 2]],
  demo: [[["demo", "--seconds=never"], 2]],
  "bug-report": [[["bug-report", join(folder, "report-NUMBER.tar.gz"), ...folders], 0]],
  completion: [[["completion", "bash"], 0]],
  version: [[["version"], 0]],
};

const READERS = ["> /dev/null", "| true", "| head -1 > /dev/null", "> /dev/full", "> /dev/full 2>&1", ">&-"];

/** Ends with the command's code, whatever the reader's is. */
async function code(args: string[], reader: string): Promise<number> {
  const line = `"$@" ${reader}; exit "\${PIPESTATUS[0]}"`;
  const env = { KMESH_CONFIG: config };
  return (await run(["bash", "-c", line, "bash", KMESH, ...args], { env })).code;
}

/** Names of files and links below a folder, but for the executable's content a fingerprint of an installation. */
function files(root: string): string[] {
  if (!existsSync(root)) return [];
  return readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((each) => !each.isDirectory())
    .map((each) => join(each.parentPath, each.name).slice(root.length))
    .sort();
}

describe.skipIf(why !== undefined)("a reader that goes away", () => {
  let names: string[] = [];
  beforeAll(async () => {
    names = (await loadAll(COMMANDS)).filter(({ hidden }) => !hidden).map(({ name }) => name);
  });

  test("every command has a way to be tried", () => {
    expect(Object.keys(WAYS).sort()).toEqual([...names].sort());
  });

  for (const [name, ways] of Object.entries(WAYS)) {
    if (name === "install" || name === "uninstall") continue;
    test(name, async () => {
      for (const [args, expected] of ways) {
        const codes = await Promise.all(
          READERS.map(async (reader, i) => [
            reader,
            // They run at once: each has a file of its own.
            await code(
              args.map((arg) => arg.replace("NUMBER", `${i}`)),
              reader,
            ),
          ]),
        );
        expect(codes).toEqual(READERS.map((reader) => [reader, expected]));
      }
    }, 60_000);
  }

  test("install and uninstall do all of their work", async () => {
    const whole = join(folder, "whole");
    mkdirSync(whole);
    expect(await code(["install", "--root", whole], "> /dev/null")).toBe(0);
    const expected = files(whole);
    expect(expected.length).toBeGreaterThan(4);
    for (const reader of READERS.slice(1)) {
      const root = join(folder, "root");
      mkdirSync(root);
      expect([reader, await code(["install", "--root", root], reader), files(root)]).toEqual([
        reader,
        0,
        expected,
      ]);
      expect([reader, await code(["uninstall", "--yes", "--root", root], reader), files(root)]).toEqual([
        reader,
        0,
        [],
      ]);
      rmSync(root, { recursive: true });
    }
  }, 60_000);

  test("the demo plays to its end, and leaves nothing attached", async () => {
    const there = () => readdirSync("/sys/fs/bpf").filter((name) => name.startsWith("kmesh-demo-"));
    const before = there();
    expect(await code(["demo", "--seconds", "1"], "| head -1 > /dev/null")).toBe(0);
    expect(there().filter((name) => !before.includes(name))).toEqual([]);
  }, 60_000);

  test("status --watch ends when nobody can see it", async () => {
    expect(await code(["status", "--watch", ...folders], "| head -1 > /dev/null")).toBe(3);
  }, 20_000);

  test("a terminal that goes away does not end an installation half way", async () => {
    const root = join(folder, "hangup");
    // The signal comes at the first line, long before the last step.
    const child = spawn(KMESH, ["install", "--root", root], { stdio: ["ignore", "pipe", "ignore"] });
    child.stdout.once("data", () => {
      child.kill("SIGHUP");
      child.stdout.destroy();
    });
    const ended = await new Promise((resolve) =>
      child.on("exit", (status, signal) => resolve(signal ?? status)),
    );
    expect([ended, files(root)]).toEqual([0, files(join(folder, "whole"))]);
  }, 30_000);
});
