/** Completion in real shells, by the executable. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { completionScript } from "../../src/cli/documents/completion.ts";
import { run } from "../lab/process.ts";
import { KMESH, missing } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: completion: ${why}`);
const folder = mkdtempSync(join(tmpdir(), "kmesh-completion-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const env = { PATH: `${folder}:${process.env.PATH}`, KMESH_CONFIG: "/dev/null", HOME: folder };

describe.skipIf(why !== undefined)("completion", () => {
  symlinkSync(KMESH, join(folder, "kmesh"));
  mkdirSync(join(folder, "a:folder"));
  writeFileSync(join(folder, "a:folder", "kmesh-new"), "");

  /** What bash would offer for a line whose end is the cursor. */
  async function bash(line: string): Promise<string[]> {
    const script = `${completionScript("bash")}\ncd ${folder}; COMP_LINE=$1; COMP_POINT=\${#1}; _kmesh; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const { stdout } = await run(["bash", "-c", script, "bash", line], { env });
    return stdout.split("\n").filter((each) => each !== "");
  }

  test("bash: commands, values behind = and files behind :", async () => {
    expect(await bash("kmesh sta")).toEqual(["status"]);
    expect(await bash("kmesh status --output=")).toEqual(["text", "json"]);
    expect(await bash("kmesh status -o j")).toEqual(["json"]);
    expect(await bash("kmesh upgrade a")).toEqual(["a:folder"]);
  });

  test.skipIf(!existsSync("/usr/bin/fish"))("fish: with what each means", async () => {
    const script = `${completionScript("fish")}\ncomplete -C 'kmesh log-level d'; complete -C 'kmesh sta'`;
    const { stdout } = await run(["fish", "--no-config", "-c", script], { env });
    expect(stdout).toMatch(/^debug\nstatus\tShow the agent/);
  });
});
