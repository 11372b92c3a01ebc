import { expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SETTINGS } from "../../config/settings.ts";
import { COMMANDS } from "../commands.ts";
import { loadAll } from "../framework/command.ts";
import { EXIT_CODES } from "../framework/exit.ts";
import { formatHelp, formatOverview } from "../framework/help.ts";
import { completionScript, SHELLS } from "./completion.ts";
import { manualPage, PAGES } from "./manual.ts";
import { candidates } from "./words.ts";

const commands = await loadAll(COMMANDS);
const about = { version: "1.2.3", description: "A service mesh that lives in the kernel" };
const names = {
  services: async () => ["shop.demo:80", "shop.demo:443", "other:80"],
  units: () => ["nginx.service", "ssh.service"],
};
const words = async (...line: string[]) => (await candidates(line, commands, names)).map(([word]) => word);

test("commands, flags, values, services, units and files are completed", async () => {
  expect(await words("sta")).toEqual(["status"]);
  expect(await words("")).toContain("bug-report");
  expect(await words("")).not.toContain("demo-stage");
  expect(await words("help", "expl")).toEqual(["explain"]);
  expect(await words("status", "--pro")).toEqual(["--problems"]);
  expect(await words("status", "--output", "")).toEqual(["text", "json"]);
  expect(await words("status", "-o", "j")).toEqual(["json"]);
  expect(await words("status", "--output=j")).toEqual(["--output=json"]);
  expect(await words("run", "--netns", "")).toEqual(["own", "all"]);
  expect(await words("run", "--unit", "ng")).toEqual(["nginx.service"]);
  expect(await words("run", "--ca", "")).toEqual([":files"]);
  expect(await words("explain", "--run-dir", "/", "shop")).toEqual(["shop.demo:80", "shop.demo:443"]);
  expect(await words("explain", "shop.demo:80", "")).toEqual([]);
  expect(await words("enrol", "nginx.service", "s")).toEqual(["ssh.service"]);
  expect(await words("dump", "")).toEqual(["received", "model", "tables"]);
  expect(await words("log-level", "d")).toEqual(["debug"]);
  expect(await words("upgrade", "")).toEqual([":files"]);
  expect(await words("completion", "")).toEqual([...SHELLS]);
  expect(await words("nothing", "")).toEqual([]);
});

test("the manual has every command, flag and setting, and troff finds nothing wrong", () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-manual-"));
  try {
    const [pages, settings] = PAGES.map((page) => manualPage(page, commands, about));
    const plain = (text = "") => text.replaceAll("\\-", "-");
    for (const { name, hidden, flags } of commands) {
      expect([name, plain(pages).includes(`.SS kmesh ${name} [FLAGS]`)]).toEqual([name, !hidden]);
      if (!hidden && !("istiod" in flags))
        for (const flag of Object.keys(flags)) expect(plain(pages)).toContain(`--${flag}`);
    }
    for (const name of Object.keys(SETTINGS)) expect(plain(settings)).toContain(`\n.B ${name}: `);
    for (const page of PAGES) {
      const path = join(folder, page);
      writeFileSync(path, manualPage(page, commands, about));
      for (const [program, ...args] of [
        ["/usr/bin/mandoc", "-T", "lint", "-W", "warning", path],
        ["/usr/bin/groff", "-man", "-ww", "-z", path],
      ] as const) {
        if (!existsSync(program)) continue;
        const { status, stdout, stderr } = spawnSync(program, args, { encoding: "utf8" });
        expect([program, status, stdout + stderr]).toEqual([program, 0, ""]);
      }
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("help fits into the terminal", () => {
  for (const width of [60, 80, 100]) {
    const texts = [
      formatOverview(about, commands, width),
      ...commands.map((each) => formatHelp(each, width)),
    ];
    for (const line of texts.join("\n").split("\n")) {
      // A longer word and an example stay whole.
      if (line.length > width) expect(line).toMatch(/^ {2}kmesh |^ {4,}[^ ]+$|^ {2}-/);
    }
  }
});

test("the settings are listed once, and those that a reload changes are named where they are explained", () => {
  const help = (name: string) => {
    const found = commands.find((each) => each.name === name);
    return found ? formatHelp(found, 100).replace(/\s+/g, " ") : "";
  };
  expect(help("run")).toContain("--service-account NAME");
  expect(help("doctor")).not.toContain("--service-account NAME");
  expect(help("doctor")).toContain("kmesh run --help lists them");
  const reloaded =
    "unit, cgroup, exclude, netns, dns, dns-exclude, dns-truncate, inbound, enforce-established, shadow, traffic, metrics,";
  expect(help("run")).toContain(`These settings change at once: ${reloaded}`);
  expect(manualPage("kmesh.yaml.5", commands, about).replaceAll("\\-", "-")).toContain(reloaded);
});

test("README names each command and each exit code", () => {
  const readme = readFileSync(join(import.meta.dirname, "../../../README.md"), "utf8");
  const table = readme.slice(readme.indexOf("## Commands"), readme.indexOf("## See traffic"));
  const listed = commands.filter(({ hidden }) => !hidden).map(({ name }) => name);
  expect(listed.filter((name) => !new RegExp(`\\| .*(kmesh |\`)${name}\\b`).test(table))).toEqual([]);
  const codes = [...table.matchAll(/^\| (\d+) \|/gm)].map(([, code]) => Number(code));
  expect(codes).toEqual(EXIT_CODES.map(([code]) => code));
});

test("the shells can read their scripts", () => {
  for (const shell of SHELLS) {
    const path = spawnSync("sh", ["-c", `command -v ${shell}`], { encoding: "utf8" }).stdout.trim();
    if (shell !== "bash" && path === "") continue;
    const { status, stderr } = spawnSync(path, ["-n"], { input: completionScript(shell), encoding: "utf8" });
    expect([shell, status, stderr]).toEqual([shell, 0, ""]);
  }
});
