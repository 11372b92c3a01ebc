/** Two whole agents that start at the same moment: one governs, the other says so and ends, and no table is harmed. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { HOOK_ORDER, linkPin } from "../../src/datapath/generation/pins.ts";
import type { Damage } from "../../src/datapath/inspect/damage.ts";
import { CgroupLink } from "../../src/kernel/link.ts";
import { eventually, type OwnedProcess } from "../lab/process.ts";
import { AgentLab, missing, SERVICE, type StatusJson, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: two agents at once: ${why}`);

setDefaultTimeout(120_000);
const ROUNDS = 10;

describe.skipIf(why !== undefined)("two agents that start at the same moment", () => {
  let lab: AgentLab;
  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 50, v2: 50 }));
  }, 60_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  const folder = (name: string) => join(lab.folder, name);
  const links = () =>
    HOOK_ORDER.map((hook) => {
      using link = CgroupLink.fromPin(linkPin(lab.bpffs, hook));
      return link.info().id;
    });

  /** Starts both, checks how the one ends that may not run, and gives the other. */
  async function race(words: (winner: OwnedProcess) => string, ...more: string[]): Promise<OwnedProcess> {
    const both = [lab.startAgent(), lab.startAgent(...more)];
    const loser = await Promise.race(both.map((agent) => agent.exited.then(() => agent)));
    const winner = both.find((agent) => agent !== loser);
    if (!winner) throw new Error("both are the same");
    expect([loser.status, loser.tail()]).toEqual([5, expect.stringContaining(words(winner))]);
    expect(loser.output()).toContain("Stop it first, or choose other folders");
    return winner;
  }

  /** It is live, by the lab's own run folder. */
  const isLive = (winner: OwnedProcess) => (status: StatusJson) =>
    status.pid === winner.pid && (status.tables?.applies ?? 0) > 0;

  /** One governs, as if there had been no other. */
  async function governs(
    winner: OwnedProcess,
    fits: (status: StatusJson) => boolean = isLive(winner),
  ): Promise<StatusJson> {
    const status = await eventually("it governs", async () => {
      const { stdout } = await lab.kmesh("status", "--output=json");
      const status: StatusJson & { damage: Damage[] } = JSON.parse(stdout);
      return fits(status) && status;
    });
    expect(status.damage).toEqual([]);
    expect(status.kernel?.hooks.filter(({ attached }) => !attached)).toEqual([]);
    const tally = await lab.connect(8);
    expect(tally).toMatchObject({ errors: {}, peers: { [`${SERVICE} 80`]: 8 } });
    expect(Object.values(tally.by).reduce((sum, count) => sum + count, 0)).toBe(8);
    expect(winner.status).toBeUndefined();
    return status;
  }

  test(`${ROUNDS} times with nothing there yet, not even the folders`, async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const winner = await race(({ pid }) => `an agent runs already: pid ${pid}`);
      const { adopted } = await governs(winner);
      expect(adopted).toBe(false);
      await winner.stop("SIGKILL");
      expect((await lab.kmesh("down", "--yes")).code).toBe(0);
      for (const name of ["run", "state"]) rmSync(folder(name), { recursive: true });
    }
  });

  test(`${ROUNDS} times over what is pinned, under connections`, async () => {
    let agent = await lab.liveAgent();
    const before = links();
    const storm = await lab.client("storm", { threads: 1 });
    const hold = await lab.client("hold", { count: 3 });
    for (let round = 0; round < ROUNDS; round++) {
      await agent.stop(round % 2 === 0 ? "SIGKILL" : "SIGTERM");
      agent = await race(({ pid }) => `an agent runs already: pid ${pid}`);
      const { adopted, tables } = await governs(agent);
      expect([adopted, tables?.writes]).toEqual([true, 0]);
      expect(links()).toEqual(before);
    }
    const [made, held] = await Promise.all([storm.end(), hold.end()]);
    expect(made.errors).toEqual({});
    expect(made.made).toBeGreaterThan(0);
    expect(held).toMatchObject({ cut: 0, errors: {} });
    await agent.stop();
  });

  test(`${ROUNDS} times with folders of their own over the same pins`, async () => {
    const others = [`--state-dir=${folder("state2")}`, `--run-dir=${folder("run2")}`];
    for (let round = 0; round < ROUNDS; round++) {
      const winner = await race(() => `an agent runs already (it holds ${lab.bpffs})`, ...others);
      // Whose status the lab's run folder has says nothing here: the pins have to be whole.
      await governs(winner, () => true);
      await winner.stop("SIGKILL");
    }
  });
});
