import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "../lab/process.ts";
import { KMESH, missing } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: the command line: ${why}`);

const folder = mkdtempSync(join(tmpdir(), "kmesh-cli-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const folders = [
  `--bpffs=/sys/fs/bpf/kmesh-cli-${process.pid}`,
  `--state-dir=${folder}/state`,
  `--run-dir=${folder}/run`,
];
const kmesh = (...args: string[]) => run([KMESH, ...args], { env: { KMESH_CONFIG: "/dev/null" } });

describe.skipIf(why !== undefined)("the command line", () => {
  const refused: [string[], number, RegExp][] = [
    [[], 2, /USAGE kmesh/],
    [["statsu"], 2, /no command "statsu"\n {2}Did you mean "kmesh status"/],
    [["--shadow", "run"], 2, /no flag --shadow before the command/],
    [["run", "--istoid", "a:1"], 2, /no flag --istoid\n {2}Did you mean --istiod/],
    [["run"], 2, /istiod's address is missing/],
    [["run", "--istiod", "a:1"], 2, /root certificate is missing/],
    [
      ["run", "--istiod", "a:1", "--plaintext", "--exclude", "10.0.0.0/40"],
      2,
      /--exclude: "10.0.0.0\/40" is not an address block/,
    ],
    [
      ["run", "--istiod", "a:1", "--ca", "/does/not/exist"],
      2,
      /--ca: \/does\/not\/exist does not exist\n {2}Check the path/,
    ],
    [
      ["run", "--istiod", "a:1", "--plaintext", "--cgroup", "/does/not/exist", ...folders],
      2,
      /no cgroup \/does\/not\/exist/,
    ],
    [["status", "--output", "yaml", ...folders], 2, /"yaml" is neither text nor json/],
    [["dump", "everything"], 2, /Write received, model or tables/],
    [["dump", "tables", ...folders], 3, /no agent runs, and nothing is pinned/],
    [["dump", "model", ...folders], 3, /No agent runs.*kmesh dump tables shows/s],
    [["explain", "a b", ...folders], 2, /"a b" is neither HOST/],
    [["explain", "10.0.0.1:80", ...folders], 3, /no kmesh tables are pinned/],
    [["install", "--root", folder, "--start"], 2, /--root writes files only/],
    [["join", "--from", "/does/not/exist", ...folders], 1, /there is no folder \/does\/not\/exist/],
    [["join", ...folders], 1, /none of istioctl's files in Istio's own places/],
    [["install", "--from", folder, "--root", folder], 1, /none of istioctl's files in /],
    [["config"], 2, /action is missing\n {2}Write check or diff/],
    [["config", "check", "--from", folder], 2, /--from is for diff/],
    [["config", "diff", folder], 2, /one argument too many/],
    [["demo", "--seconds", "soon"], 2, /--seconds: "soon" is not a number/],
    [["status", "--config", "/does/not/exist"], 2, /not\/exist does not exist\n {2}kmesh install writes one/],
    [["log", "--count", "0", ...folders], 2, /--count: "0" is not a number of lines/],
  ];
  for (const [args, code, expected] of refused) {
    test(`kmesh ${args.filter((arg) => !folders.includes(arg)).join(" ")}: ${code}`, async () => {
      const result = await kmesh(...args);
      expect(result.stderr).toMatch(expected);
      expect(result.stdout).toBe("");
      expect(result.code).toBe(code);
    });
  }

  test("what is wrong is found before anything is made", () => {
    const bpffs = folders[0]?.split("=")[1] ?? "";
    expect([bpffs, join(folder, "run"), join(folder, "state")].filter((path) => existsSync(path))).toEqual(
      [],
    );
  });

  test("a wrong key of the configuration is named with its file", async () => {
    const file = join(folder, "wrong.yaml");
    writeFileSync(file, "istiod: a:1\nplaintext: true\nnamspace: shop\n");
    const result = await kmesh("run", "--config", file);
    expect(result.code).toBe(2);
    expect(result.stderr).toContain(`${file}: there is no setting "namspace"\n  Did you mean "namespace"?`);
  });

  test("a configuration is checked: what is wrong is the answer", async () => {
    const none = await kmesh("config", "check", "/does/not/exist");
    expect(none).toMatchObject({ code: 2, stderr: "" });
    expect(none.stdout).toMatch(/^\/does\/not\/exist does not exist\n {2}\S/);
    const file = join(folder, "several.yaml");
    writeFileSync(file, "istiod: a:0\nplaintext: maybe\ncgroup: [/does/not/exist]\n");
    const { code, stdout } = await kmesh("config", "check", file, "--output=json");
    expect(code).toBe(2);
    const { valid, problems } = JSON.parse(stdout);
    expect(valid).toBe(false);
    expect(problems.map(({ message }: { message: string }) => message.replace(`${file}, key `, ""))).toEqual([
      'plaintext: "maybe" is neither true nor false',
      'istiod: "0" is not a port',
      "istiod's root certificate is missing",
      expect.stringContaining("there is no cgroup /does/not/exist"),
    ]);
    writeFileSync(file, "istiod: a: b\n");
    const broken = await kmesh("doctor", "--config", file, ...folders);
    expect(broken.stdout).toMatch(
      /^configuration +WRONG +.*several\.yaml is not valid YAML.*\n.*\nkernel +ok /,
    );
    expect([broken.code, broken.stderr]).toEqual([1, ""]);
    writeFileSync(file, "istiod: a:1\nplaintext: true\n");
    expect(await kmesh("config", "check", file)).toMatchObject({ code: 0, stdout: `${file} is valid.\n` });
  });

  test("nobody but root", async () => {
    const result = await run(["setpriv", "--reuid=65534", "--clear-groups", KMESH, "status", ...folders], {
      env: { KMESH_CONFIG: "/dev/null" },
    });
    expect(result.code).toBe(4);
    expect(result.stderr).toContain("needs root");
  });

  test("help is plain in a pipe, and lists what there is", async () => {
    const all = await kmesh("--help");
    expect(all.code).toBe(0);
    for (const name of ["run", "status", "dump", "explain", "down", "demo", "version"])
      expect(all.stdout).toContain(name);
    for (const hidden of ["demo-part", "demo-stage"]) expect(all.stdout).not.toContain(hidden);
    const one = await kmesh("run", "--help");
    for (const flag of ["--istiod", "--exclude", "--allow-plaintext", "--state-dir"])
      expect(one.stdout).toContain(flag);
    expect(one.stdout).toContain("KMESH_SERVICE_ACCOUNT");
    expect(all.stdout + one.stdout).not.toContain("\u001b");
  });

  test("version", async () => {
    const { stdout } = await kmesh("version", "--output", "json");
    expect(JSON.parse(stdout)).toMatchObject({
      version: expect.stringMatching(/^\d+\.\d+\.\d+\+/),
      architecture: process.arch,
    });
  });

  test("down has nothing to do where nothing is", async () => {
    const result = await kmesh("down", ...folders);
    expect(result).toMatchObject({ code: 0, stderr: "" });
    expect(result.stdout).toContain("Nothing to do");
  });
});

describe.skipIf(why !== undefined)("what the system refuses", () => {
  test("a file system that is mounted read-only, with the next step", async () => {
    const script = 'mount -t tmpfs -o ro none /mnt && exec "$0" install --root /mnt -o json';
    const { code, stdout, stderr } = await run(["unshare", "--mount", "sh", "-c", script, KMESH]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/EROFS.*\n {2}That file system is mounted read-only/);
    expect(JSON.parse(stdout)).toMatchObject({
      schema: 1,
      error: { exit: 1, next: expect.stringContaining("remount,rw") },
    });
  });

  test("too many open files, with the next step", async () => {
    const { code, stderr } = await run(["prlimit", "--nofile=8", KMESH, "install", "--root", folder]);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/EMFILE.*\n {2}This process may open no more files: ulimit/);
  });
});
