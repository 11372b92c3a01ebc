/** The manifest: what a start finds in the state folder of what was meant, whole, damaged or another's. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { FAULT_VARIABLE } from "../../src/runtime/fault.ts";
import type { Entry } from "../../src/state/history.ts";
import { type ManifestContent, manifestFile } from "../../src/state/manifest.ts";
import { OTHER_VERSION, otherBuild } from "../lab/other-build.ts";
import { eventually, type OwnedProcess, output, run } from "../lab/process.ts";
import { AgentLab, KMESH, missing, type StatusJson, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: the manifest: ${why}`);

setDefaultTimeout(60_000);

type Status = StatusJson & { manifest: ManifestContent };

describe.skipIf(why !== undefined)("the manifest", () => {
  let lab: AgentLab;
  let wide: string;
  let agent: OwnedProcess;
  let file: string;
  let version: string;

  beforeAll(async () => {
    wide = await otherBuild("wide-layout");
    lab = await AgentLab.create(shop({ v1: 90, v2: 10 }));
    file = manifestFile(join(lab.folder, "state"));
    agent = await lab.liveAgent();
    version = (await lab.status()).version ?? "";
  });
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  });

  const read = () => JSON.parse(readFileSync(file, "utf8"));
  const write = (value: object) => writeFileSync(file, JSON.stringify(value));
  const status = () => lab.json<Status>("status");
  const generations = () => readdirSync(join(lab.bpffs, "gen")).sort();
  const warnings = () => agent.output().match(/^(warn|error) .*$/gm) ?? [];
  const lines = (about: string) =>
    agent
      .output()
      .split("\n")
      .filter((line) => line.includes(about));

  /** Ends the agent, has `change` done, and starts another, of `program`. */
  async function anew(change: () => void | Promise<void> = () => {}, program = KMESH): Promise<void> {
    await agent.stop("SIGKILL");
    await change();
    lab.program = [program];
    agent = await lab.liveAgent();
    expect((await lab.connect(5)).errors).toEqual({});
  }

  /** Starts an agent of `program` that ends at a fault point. */
  async function diesAt(point: string, program: string): Promise<void> {
    await agent.stop("SIGKILL");
    lab.program = [program];
    lab.environment = { [FAULT_VARIABLE]: point };
    expect(await lab.startAgent().exited).toBe("SIGKILL");
    lab.environment = {};
  }

  test("tells which version governs since when; status has it, and a restart leaves it alone", async () => {
    const { kernel } = await lab.status();
    const { live, kept, step } = read();
    expect(live).toMatchObject({ abi: kernel?.abi, code: expect.any(String), version });
    expect([kept, step]).toEqual([undefined, undefined]);
    const { ino } = statSync(file);
    await anew();
    await (await agent).stop();
    agent = await lab.liveAgent();
    expect(statSync(file).ino).toBe(ino);
    expect(lines("manifest")).toEqual([]);
    expect((await status()).manifest).toMatchObject({ live });
    const { stdout } = await lab.kmesh("status");
    expect(stdout).toMatch(
      new RegExp(`^version +the tables of layout ${live.abi} \\(kmesh \\S+\\) govern for [\\d.]+ m?s$`, "m"),
    );
  });

  test("damaged: set aside with a line, made anew by the pins", async () => {
    await anew(() => writeFileSync(file, "\0 not what was here"));
    expect(lines("manifest")).toEqual([
      `warn  The manifest ${file} is not used: it is damaged: no JSON object. It lies in ${file}.bad now; rebuilt from the pinned tables, which stay in use`,
    ]);
    expect(readFileSync(`${file}.bad`, "utf8")).toBe("\0 not what was here");
    expect(read().live).toMatchObject({ version });
  });

  test("of another machine: the same, and it says so", async () => {
    await anew(() => write({ ...read(), machine: "0".repeat(64) }));
    expect(lines("manifest")).toEqual([
      expect.stringContaining(
        "is not used: it was written on another machine (/etc/machine-id differs). It lies in",
      ),
    ]);
  });

  test("lost with the whole folder: made anew, with a line", async () => {
    await anew(() => rmSync(join(lab.folder, "state"), { recursive: true }));
    expect(lines("manifest")).toEqual([
      `info  There is no ${file}: rebuilt from the pinned tables, which stay in use`,
    ]);
    expect(read().live).toMatchObject({ version });
  });

  test("removed under an agent: written again", async () => {
    const before = read();
    rmSync(file);
    await eventually("it is there", () => existsSync(file), 10_000);
    expect(read()).toEqual(before);
  });

  test("a newer version's: no agent starts, nothing is touched, connections are governed on", async () => {
    const whole = read();
    const text = JSON.stringify({ ...whole, version: 2, live: { ...whole.live, version: "7.0.0" } });
    // Also as a successor: the previous agent continues.
    writeFileSync(file, text);
    const { code, stderr } = await lab.kmesh("restart", "--graceful");
    expect(code).toBe(6);
    expect(stderr).toContain(`the successor gave up: ${file} was written by kmesh 7.0.0 in format 2`);
    expect((await lab.status()).pid).toBe(agent.pid);
    await agent.stop("SIGKILL");
    const pins = readdirSync(lab.bpffs, { recursive: true }).sort();
    const refused = lab.startAgent();
    expect(await refused.exited).toBe(9);
    expect(refused.output()).toContain(
      `kmesh: ${file} was written by kmesh 7.0.0 in format 2; this one (${version}) knows format 1. ` +
        "Nothing was changed: the pinned tables stay in use\n" +
        "  Start kmesh 7.0.0 or a later one; or have `kmesh down` remove tables and manifest, and start again.\n",
    );
    expect(readFileSync(file, "utf8")).toBe(text);
    expect(readdirSync(lab.bpffs, { recursive: true }).sort()).toEqual(pins);
    expect((await lab.connect(20)).errors).toEqual({});
    expect((await lab.kmesh("status")).stdout).toMatch(
      /^manifest +not used: .* was written by kmesh 7\.0\.0/m,
    );
    expect((await lab.kmesh("down", "--yes")).code).toBe(0);
    expect(existsSync(file)).toBe(false);
    agent = await lab.liveAgent();
  });

  test("a folder that takes nothing is told of once; the agent starts and goes on", async () => {
    const state = join(lab.folder, "state");
    await agent.stop("SIGKILL");
    rmSync(state, { recursive: true });
    mkdirSync(state);
    await output(["mount", "-t", "tmpfs", "-o", "ro,mode=0700", "none", state]);
    try {
      agent = await lab.liveAgent();
      expect((await lab.connect(5)).errors).toEqual({});
      expect(lines("manifest")).toEqual([
        `info  There is no ${file}: rebuilt from the pinned tables, which stay in use`,
        expect.stringMatching(
          /^warn +.*manifest\.json can't be written: EROFS.*Traffic does not need it; the next start reads the pins$/,
        ),
      ]);
      await agent.stop();
    } finally {
      await run(["umount", state]);
    }
    agent = await lab.liveAgent();
    expect(read().live).toBeDefined();
  });

  test("what an upgrade leaves is kept for an hour from then on, over restarts, then removed", async () => {
    const before = read().live;
    await anew(() => {}, wide);
    const { live, kept } = read();
    expect(live.version).toBe(OTHER_VERSION["wide-layout"]);
    expect(kept).toEqual({ ...before, since: live.since });
    await anew(() => {}, wide);
    expect(read()).toMatchObject({ live, kept });
    expect((await lab.kmesh("status")).stdout).toMatch(
      new RegExp(
        ` the tables of layout ${kept.abi} \\(.*\\) are kept for the way back, for (60|59) min more$`,
        "m",
      ),
    );
    expect(generations()).toEqual([live.abi, kept.abi].sort());
    const since = new Date(Date.now() - 3_600_000).toISOString();
    await anew(() => write({ ...read(), kept: { ...kept, since } }), wide);
    await eventually("they are removed", () => generations().length === 1);
    expect(lines("removed")).toEqual([
      `info  removed the tables that another version left (layout ${kept.abi})`,
    ]);
    expect(read()).toMatchObject({ live });
    expect(read().kept).toBeUndefined();
  });

  test("an attempt that died before its flip is undone by the version before, and told", async () => {
    const { live } = read();
    await diesAt("publish.descriptor:2", KMESH);
    expect(read()).toMatchObject({
      live,
      step: { name: "fill", from: { abi: live.abi, version: live.version }, to: { version } },
    });
    const { abi } = read().step.to;
    expect(generations()).toEqual([live.abi, abi].sort());
    const { stdout } = await lab.kmesh("status");
    expect(stdout).toMatch(
      /^ +BROKEN OFF, begun [\d.]+ m?s ago: filling the tables of layout \w+ \(kmesh \S+\); the next start takes care of it$/m,
    );
    await anew(() => {}, wide);
    expect(generations()).toEqual([live.abi]);
    expect(lines("ended in the middle")).toEqual([
      expect.stringMatching(
        new RegExp(
          `^warn  An agent ended in the middle of a step, begun \\S+Z: filling the tables of layout ${abi} \\(kmesh \\S+\\)\\. Undone: they are removed$`,
        ),
      ),
    ]);
    const history = (await lab.json<{ entries: Entry[] }>("history")).entries;
    expect(history.at(-1)).toMatchObject({ kind: "start", cause: "crash", unfinished: "fill" });
    expect((await lab.kmesh("history")).stdout).toContain(
      "the one before was killed or crashed, in the middle of a step (fill)",
    );
  });

  test("an attempt that died between its flip and the removal of a third: finished at once", async () => {
    const { live } = read();
    const third = "0000000000000000";
    for (const abi of [third, "1111111111111111"]) mkdirSync(join(lab.bpffs, "gen", abi));
    const kept = { abi: third, since: new Date().toISOString() };
    write({ ...read(), kept });
    // What is no way back goes before it, while the other version governs.
    await diesAt("flip.hooks", KMESH);
    expect(generations()).toHaveLength(3);
    expect(read()).toMatchObject({ live, step: { name: "flip" } });
    lab.program = [KMESH];
    await lab.stopControlPlane();
    agent = lab.startAgent();
    await eventually("it is finished", () => generations().length === 2);
    await eventually("it is told", () => lines("ended in the middle").length > 0);
    expect(lines("ended in the middle")[0]).toEndWith("It is complete");
    expect(lines("removed")).toEqual([`info  removed the tables that failed attempts left: layout ${third}`]);
    expect(read().kept).toMatchObject({ abi: live.abi, version: live.version });
    await lab.startControlPlane();
    await anew();
    expect(lines("ended in the middle")).toEqual([]);
  });

  test("after a reboot nothing is kept", async () => {
    expect(read().kept).toBeDefined();
    await anew(() => {
      for (const path of [lab.bpffs, join(lab.folder, "run")]) rmSync(path, { recursive: true, force: true });
    });
    expect(read()).toMatchObject({ live: { version } });
    expect(read().kept).toBeUndefined();
    expect(warnings().filter((line) => line.includes("manifest"))).toEqual([]);
  });
});
