/** The machine's own addresses: none yet at boot, more and others later, under connections. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { run } from "../lab/process.ts";
import { AgentLab, missing, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: addresses: ${why}`);

describe.skipIf(why !== undefined)("addresses that come and go", () => {
  let lab: AgentLab;

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 90, v2: 10 }));
  }, 60_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  const address = (action: "add" | "del", which: string) =>
    run(["ip", "addr", action, `${which}/32`, "dev", "lo"], { netns: lab.namespace.path });

  test("the snapshot governs a machine without one; istiod hears of each, and no connection of any", async () => {
    const first = await lab.liveAgent();
    await first.stop("SIGTERM");
    // What a reboot leaves.
    for (const folder of [lab.bpffs, join(lab.folder, "run")])
      rmSync(folder, { recursive: true, force: true });

    const agent = lab.startAgent("--ip=");
    await lab.statusOnce(
      "it lives without an address",
      agent,
      (status) => status.pid === agent.pid && status.alive,
    );
    expect(agent.output()).toContain("no address that peers could reach");
    expect((await lab.connect(20)).errors).toEqual({});
    const storm = await lab.client("storm", { threads: 2 });

    const told = (...addresses: string[]) =>
      lab.statusOnce(`istiod is told ${addresses}`, agent, (status) => {
        const same = JSON.stringify(status.node?.addresses) === JSON.stringify(addresses);
        return same && status.pid === agent.pid && status.stream?.synced === true;
      });
    await address("add", "10.77.0.2");
    await told("10.77.0.2");
    await address("add", "10.77.0.1");
    await told("10.77.0.2", "10.77.0.1");
    await address("del", "10.77.0.2");
    await told("10.77.0.1");
    expect((await storm.end()).errors).toEqual({});
  }, 60_000);
});
