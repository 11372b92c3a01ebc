/** Another version's tables look different: up and down between two, under connections. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { OTHER_VERSION, otherBuild } from "../lab/other-build.ts";
import { AgentLab, KMESH, missing, shop } from "./agent-lab.ts";

setDefaultTimeout(120_000);
const reason = missing();
if (reason !== undefined) console.warn(`the upgrade test is skipped: ${reason}`);

describe.skipIf(reason !== undefined)("versions with different tables", () => {
  let lab: AgentLab;
  let wide: string;
  beforeAll(async () => {
    wide = await otherBuild("wide-layout");
    lab = await AgentLab.create(shop({ v1: 50, v2: 50 }));
  });
  afterAll(async () => {
    expect(await lab?.remove()).toEqual([]);
  });

  function generations(): string[] {
    return readdirSync(join(lab.bpffs, "gen"));
  }

  test("up and down under connections: none fails, none is cut, each is counted", async () => {
    await (await lab.liveAgent()).stop();
    const before = await lab.status();
    expect(generations()).toEqual([before.kernel?.abi ?? ""]);
    const held = await lab.client("hold", { count: 50 });
    const storm = await lab.client("storm", { threads: 1 });
    for (const program of [wide, KMESH, wide]) {
      lab.program = [program];
      const agent = await lab.liveAgent();
      const status = await lab.status();
      expect(status.version).toStartWith(
        program === wide ? OTHER_VERSION["wide-layout"] : (before.version ?? ""),
      );
      expect(status.kernel?.foreign).toBeUndefined();
      expect(generations()).toHaveLength(2);
      expect(await agent.stop()).toBe(0);
    }
    const stormed = await storm.end();
    const kept = await held.end();
    expect({ errors: stormed.errors, cut: kept.cut, heldErrors: kept.errors }).toEqual({
      errors: {},
      cut: 0,
      heldErrors: {},
    });
    const { kernel } = await lab.status();
    const counted = kernel?.services.find(({ service }) => service.startsWith("shop."))?.redirected;
    expect(counted).toBe(stormed.made + kept.made);
  });

  test("what this version can't read, it says", async () => {
    lab.program = [KMESH];
    const status = await lab.status();
    expect(status.kernel?.foreign).toBeString();
    expect(status.kernel?.settings).toBeUndefined();
    for (const command of [
      ["explain", "10.96.0.10:80"],
      ["dump", "tables"],
    ]) {
      const { code, stderr } = await lab.kmesh(...command);
      expect(code).toBe(1);
      expect(stderr).toContain("governed by the tables of another kmesh version");
    }
    lab.program = [wide];
    expect((await lab.kmesh("explain", "10.96.0.10:80")).code).toBe(0);
  });

  test("down by either version leaves nothing", async () => {
    lab.program = [KMESH];
    expect((await lab.kmesh("down", "--yes")).code).toBe(0);
    expect(existsSync(lab.bpffs)).toBe(false);
  });
});
