import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { AgentLab, missing, SERVICE, shop } from "../e2e/agent-lab.ts";
import type { OwnedProcess } from "../lab/process.ts";

const ROOT = join(import.meta.dir, "../..");
const DENO = join(ROOT, "node_modules/.bin/deno");

const why = existsSync(DENO) ? missing() : `needs ${DENO}`;
if (why) console.warn(`skipped: the agent under Deno: ${why}`);

describe.skipIf(why !== undefined)("the agent under Deno, from the same source", () => {
  let lab: AgentLab;
  let agent: OwnedProcess;

  beforeAll(async () => {
    const program = [DENO, "run", "--allow-all", "--quiet", join(ROOT, "src/main.ts")];
    lab = await AgentLab.create(shop({ v1: 80, v2: 20 }), program);
    agent = await lab.liveAgent();
  }, 60_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  test("loads, attaches and syncs", async () => {
    const tally = await lab.connect(100);
    expect(tally.by).toEqual({ a: 40, b: 40, c: 20 });
    expect(tally.peers).toEqual({ [`${SERVICE} 80`]: 100 });
    expect(await lab.status()).toMatchObject({ alive: true, pid: agent.pid, adopted: false });
  }, 20_000);

  test("reattaches after SIGKILL: nothing was lost meanwhile, and what changed is live", async () => {
    await agent.stop("SIGKILL");
    lab.configure(shop({ v1: 0, v2: 100 }));
    const orphaned = await lab.connect(100);
    expect(orphaned.errors).toEqual({});
    expect(orphaned.by).toEqual({ a: 40, b: 40, c: 20 });

    agent = await lab.liveAgent();
    expect(await lab.status()).toMatchObject({ alive: true, pid: agent.pid, adopted: true });
    expect((await lab.connect(50)).by).toEqual({ c: 50 });
  }, 40_000);
});
