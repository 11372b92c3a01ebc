/** The single file over pins and folders that somebody damages: told by `kmesh status`, put right, unnoticed by connections. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { listPins } from "../../src/kernel/bpffs.ts";
import { CgroupLink } from "../../src/kernel/link.ts";
import { eventually, type OwnedProcess, run } from "../lab/process.ts";
import { AgentLab, missing, shop } from "./agent-lab.ts";

const why = missing() ?? (existsSync("/usr/sbin/bpftool") ? undefined : "needs /usr/sbin/bpftool");
if (why) console.warn(`skipped: damage: ${why}`);

setDefaultTimeout(60_000);

describe.skipIf(why !== undefined)("damage under the single file", () => {
  let lab: AgentLab;
  let agent: OwnedProcess;

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 50, v2: 50 }));
    agent = await lab.liveAgent();
  });
  afterAll(async () => {
    if (lab) {
      rmSync(join(lab.bpffs, "aside"), { recursive: true, force: true });
      expect(await lab.remove()).toEqual([]);
    }
  });

  const pin = (...names: string[]) => join(lab.bpffs, ...names);
  const table = (name: string) => {
    const [abi = ""] = readdirSync(pin("gen"));
    return pin("gen", abi, "tables", name);
  };
  /** Pins a map that is not kmesh's. */
  async function squat(path: string): Promise<void> {
    const words = ["map", "create", path, ..."type array key 4 value 4 entries 1 name squatter".split(" ")];
    const { code, stderr } = await run(["bpftool", ...words]);
    if (code !== 0) throw new Error(stderr);
  }
  const isWell = async () => (await lab.kmesh("status")).code === 0;

  test("nothing is damaged", async () => {
    const { code, stdout } = await lab.kmesh("status", "--output=json");
    expect(code).toBe(0);
    expect(JSON.parse(stdout).damage).toEqual([]);
  });

  test("an agent pins again what is removed, all of it too, and no connection notices", async () => {
    const before = listPins(lab.bpffs);
    const storm = await lab.client("storm", { threads: 1 });
    const hold = await lab.client("hold", { count: 5 });
    for (const path of [pin("links", "connect4"), table("slots"), pin("keep", "name_lines"), lab.bpffs]) {
      rmSync(path, { recursive: true });
      const { code, stdout } = await lab.kmesh("status", "--output=json");
      const { alive, damage } = JSON.parse(stdout);
      expect(alive).toBe(true);
      // Upkeep may have come in between.
      if (code !== 0) {
        expect(code).toBe(10);
        expect(JSON.stringify(damage)).toContain(path);
        expect(damage[0].cure).toContain("within 5 s");
      }
      await eventually("all is pinned again", () => listPins(lab.bpffs).length === before.length);
    }
    expect(await isWell()).toBe(true);
    expect((await storm.end()).errors).toEqual({});
    expect(await hold.end()).toMatchObject({ cut: 0, errors: {} });
    expect(agent.output()).toContain(`pinned again: ${pin("links", "connect4")}`);
    expect(agent.output()).not.toContain("attached again");
    await eventually("the folder is locked again", () => agent.output().includes("there and locked again"));
  });

  test("without an agent: status shows it and reads the tables all the same, a start puts it right", async () => {
    await agent.stop("SIGKILL");
    const before = listPins(lab.bpffs);
    for (const path of [table("slots"), pin("keep", "cluster_names"), pin("links", "getpeername4")])
      rmSync(path);
    await squat(pin("links", "getpeername4"));
    const { code, stdout } = await lab.kmesh("status", "--output=json");
    expect(code).toBe(10);
    const { alive, damage, kernel } = JSON.parse(stdout);
    expect(alive).toBe(false);
    expect(kernel.services.length).toBeGreaterThan(1);
    expect(damage).toEqual([
      {
        what: `getpeername4 is not attached: ${pin("links", "getpeername4")} is the map squatter, which is not kmesh's`,
        consequence: expect.stringContaining("apps see the endpoint's IPv4 address"),
        cure: expect.stringContaining("`kmesh run` attaches it again"),
      },
      {
        what: `somebody removed ${pin("keep", "cluster_names")}, ${table("slots")}`,
        consequence: expect.stringContaining("governed on"),
        cure: expect.stringContaining("`kmesh run` pins them again"),
      },
    ]);
    const text = await lab.kmesh("status");
    expect(text.code).toBe(10);
    expect(text.stdout).toContain("\n\nDAMAGED\n  getpeername4 is not attached");
    expect((await lab.connect(10)).made).toBe(10);

    agent = await lab.liveAgent();
    expect(await isWell()).toBe(true);
    expect(listPins(lab.bpffs)).toEqual([pin("aside", "links_getpeername4"), ...before].sort());
    expect(agent.output()).toContain("was the map squatter, which is not kmesh's: it lies in");
    expect((await lab.status()).tables?.firstWrites).toBe(0);
    expect(await lab.connect(10)).toMatchObject({ made: 10, errors: {} });
  });

  test("run and state folder removed under an agent: made anew, locked, filled", async () => {
    const snapshot = join(lab.folder, "state/snapshot");
    await eventually("the snapshot is there", () => existsSync(snapshot));
    for (const name of ["run", "state"]) rmSync(join(lab.folder, name), { recursive: true });
    expect((await lab.kmesh("status")).code).toBe(3);
    await eventually("the agent answers again", isWell, 15_000);
    await eventually("the snapshot is there again", () => existsSync(snapshot), 15_000);
    expect(statSync(join(lab.folder, "state")).mode & 0o777).toBe(0o700);
    expect(await lab.status()).toMatchObject({ alive: true, pid: agent.pid });
    const second = lab.startAgent();
    await eventually("a second agent ends", () => second.status !== undefined);
    expect(second.status).toBe(5);
    expect(second.output()).toContain(`pid ${agent.pid}`);
  });

  test.each(["state", "run", "bpffs"])("a folder that others may write to: %s", async (which) => {
    const path = which === "bpffs" ? lab.bpffs : join(lab.folder, which);
    chmodSync(path, 0o777);
    try {
      const { code, stdout } = await lab.kmesh("status");
      expect(code).toBe(10);
      expect(stdout).toContain(`${path} may be written by others (mode 777)`);
      expect(stdout).toContain(`cure: chmod go-w ${path}`);
      await agent.stop();
      agent = lab.startAgent();
      await eventually("it ends", () => agent.status !== undefined);
      expect(agent.status).toBe(4);
      expect(agent.output()).toContain(`${path} may be written by others`);
      expect(agent.output()).toContain(`chmod go-w ${path}`);
      expect((await lab.connect(10)).made).toBe(10);
    } finally {
      chmodSync(path, 0o700);
    }
    agent = await lab.liveAgent();
    expect(await isWell()).toBe(true);
  });

  test("an agent whose folders another took while it was stopped leaves them alone, at its end too", async () => {
    const old = agent;
    process.kill(old.pid, "SIGSTOP");
    try {
      for (const path of [join(lab.folder, "run"), join(lab.folder, "state"), lab.bpffs])
        rmSync(path, { recursive: true });
      agent = await lab.liveAgent();
    } finally {
      process.kill(old.pid, "SIGCONT");
    }
    const links = () =>
      listPins(pin("links")).map((path) => {
        using link = CgroupLink.fromPin(path);
        return link.info().id;
      });
    const before = [listPins(lab.bpffs), links()];
    await eventually("it ends by itself", () => old.status !== undefined, 20_000);
    expect(old.status).toBe(5);
    expect(old.output()).toMatch(
      new RegExp(`lost its locks.*agent\\.lock is locked by pid ${agent.pid}\\. It ends`),
    );
    const { pid } = JSON.parse(readFileSync(join(lab.folder, "run/status.json"), "utf8"));
    expect(pid).toBe(agent.pid);
    expect([listPins(lab.bpffs), links()]).toEqual(before);
    expect(old.output()).not.toMatch(/pinned again|attached again|which is not kmesh's/);
    expect(agent.output()).not.toMatch(/pinned again|attached again|which is not kmesh's/);
    expect((await lab.connect(10)).made).toBe(10);
  });

  test("a bpffs mounted over the pins without an agent: a start pins the same links, no hook runs twice", async () => {
    const links = () =>
      listPins(pin("links")).map((path) => {
        using link = CgroupLink.fromPin(path);
        return link.info().id;
      });
    const shell = async (...command: string[]) => expect(await run(command)).toMatchObject({ code: 0 });
    await agent.stop("SIGKILL");
    const before = links();
    expect(before.length).toBe(5);
    await shell("mount", "-t", "bpf", "-o", "mode=0700", "bpf", lab.bpffs);
    try {
      expect(links()).toEqual([]);
      const storm = await lab.client("storm", { threads: 1 });
      agent = await lab.liveAgent();
      expect(links()).toEqual(before);
      expect(agent.output()).toContain("connect4 was attached and its link had no pin: pinned again");
      expect((await storm.end()).errors).toEqual({});
      const counted = async () =>
        ((await lab.status()).kernel?.services ?? []).reduce((sum, { redirected }) => sum + redirected, 0);
      const start = await counted();
      expect(await lab.connect(10)).toMatchObject({ made: 10, errors: {} });
      expect((await counted()) - start).toBe(10);
      await agent.stop();
    } finally {
      await shell("umount", "-l", lab.bpffs);
    }
    expect(links()).toEqual(before);
    agent = await lab.liveAgent();
    expect(await isWell()).toBe(true);
  });

  test("a pin in the place of the whole folder is named", async () => {
    const path = `/sys/fs/bpf/kmesh-squat-${process.pid}`;
    await squat(path);
    try {
      const second = lab.startAgent(
        `--bpffs=${path}`,
        `--run-dir=${lab.folder}/run2`,
        `--state-dir=${lab.folder}/state2`,
      );
      await eventually("it ends", () => second.status !== undefined);
      expect(second.status).not.toBe(0);
      expect(second.output()).toContain(`${path} is not a folder: somebody has pinned something there`);
    } finally {
      rmSync(path);
    }
    mkdirSync(pin("links", "sock_ops"));
    expect(await isWell()).toBe(true);
    rmSync(pin("links", "sock_ops"), { recursive: true });
  });
});
