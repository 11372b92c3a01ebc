/** A bpffs that somebody mounts over or takes away under the single file: its hooks and their connections stay. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, rmSync } from "node:fs";
import { HOOK_ORDER, linkPin } from "../../src/datapath/generation/pins.ts";
import { listPins } from "../../src/kernel/bpffs.ts";
import { CgroupLink } from "../../src/kernel/link.ts";
import { eventually, type OwnedProcess, run } from "../lab/process.ts";
import { AgentLab, missing, SERVICE, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: mounts over a bpffs: ${why}`);

setDefaultTimeout(60_000);

describe.skipIf(why !== undefined)("a bpffs under the single file", () => {
  let lab: AgentLab;
  let agent: OwnedProcess;
  let mounts = 0;

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 50, v2: 50 }));
    mkdirSync(lab.bpffs, { mode: 0o700 });
  });
  afterEach(async () => {
    while (mounts > 0) await unmount();
  });
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  });

  async function mount(type: "bpf" | "tmpfs"): Promise<void> {
    const { code, stderr } = await run(["mount", "-t", type, "-o", "mode=700", type, lab.bpffs]);
    if (code !== 0) throw new Error(stderr);
    mounts += 1;
  }

  async function unmount(): Promise<void> {
    const { code, stderr } = await run(["umount", "-l", lab.bpffs]);
    if (code !== 0) throw new Error(stderr);
    mounts -= 1;
  }

  const links = () =>
    HOOK_ORDER.map((hook) => {
      using link = CgroupLink.fromPin(linkPin(lab.bpffs, hook));
      return link.info().id;
    });

  /** A bpffs has files of its own in its root: maps.debug, progs.debug. */
  const pins = () => listPins(lab.bpffs).filter((path) => !path.endsWith(".debug")).length;

  async function isPinnedAgain(before: readonly number[], count: number): Promise<void> {
    await eventually("all is pinned again", () => pins() === count, 15_000);
    // The same links: no hook runs twice.
    expect(links()).toEqual([...before]);
    await eventually("nothing is damaged", async () => (await lab.kmesh("status")).code === 0, 15_000);
  }

  async function governs(): Promise<void> {
    expect(await lab.connect(4)).toMatchObject({ errors: {}, peers: { [`${SERVICE} 80`]: 4 } });
  }

  test("unmounted, with all pins; then mounted over by another, and that one taken away", async () => {
    await mount("bpf");
    agent = await lab.liveAgent();
    // They are pinned a moment after the tables of connections.
    await eventually("names are live", async () => ((await lab.toldStatus()).names?.entries ?? 0) > 0);
    const before = links();
    const count = pins();
    const storm = await lab.client("storm", { threads: 1 });
    const hold = await lab.client("hold", { count: 5 });
    await unmount();
    await isPinnedAgain(before, count);
    await mount("bpf");
    await isPinnedAgain(before, count);
    // What is pinned there now is enough for the next start.
    await agent.stop("SIGKILL");
    await governs();
    agent = await lab.liveAgent();
    expect(await lab.status()).toMatchObject({ adopted: true, tables: { writes: 0 } });
    await unmount();
    await isPinnedAgain(before, count);
    expect((await storm.end()).errors).toEqual({});
    expect(await hold.end()).toMatchObject({ cut: 0, errors: {} });
    expect(lab.said("attached again")).toEqual([]);
  });

  test("covered by something that takes no pins: told, nothing ends, and all is well when it goes", async () => {
    const before = links();
    const count = pins();
    await mount("tmpfs");
    const text = `the bpffs at ${lab.bpffs} is no longer mounted`;
    const told = await eventually(
      "it is told",
      async () => {
        const { code, stdout } = await lab.kmesh("status", "--output=json");
        const { alive, damage } = JSON.parse(stdout);
        return JSON.stringify(damage).includes(text) && { alive, code };
      },
      15_000,
    );
    expect(told).toEqual({ alive: true, code: 10 });
    await governs();
    await unmount();
    await isPinnedAgain(before, count);
  });

  test("what is unpinned in the agent's last moment is pinned again before it goes", async () => {
    const before = links();
    const count = pins();
    rmSync(lab.bpffs, { recursive: true });
    expect(await agent.stop("SIGTERM")).toBe(0);
    expect(pins()).toBe(count);
    expect(links()).toEqual(before);
    await governs();
  });
});
