/** kmesh.service at boot, on a machine that was made with it. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { eventually } from "../lab/process.ts";
import { fetchRoot, SystemdMachine } from "./machine.ts";

setDefaultTimeout(120_000);

const { root, missing: why } = fetchRoot();
if (why !== undefined) console.warn(`skipped: boot: ${why}`);

describe.skipIf(why !== undefined)("at boot", () => {
  let machine: SystemdMachine;
  beforeAll(async () => {
    machine = await SystemdMachine.boot(root, true);
  }, 120_000);
  afterAll(async () => {
    if (machine) expect(await machine.remove()).toEqual([]);
  }, 60_000);

  async function comesUp(): Promise<void> {
    expect(await machine.property("ActiveState")).toBe("active");
    expect(await machine.property("NRestarts")).toBe("0");
    const reached = async (unit: string, state: string) =>
      Number(
        await machine.output("systemctl", "show", "--value", `--property=${state}TimestampMonotonic`, unit),
      );
    const ready = await reached("kmesh.service", "ActiveEnter");
    expect(ready).toBeGreaterThan(0);
    expect(await reached("network-pre.target", "ActiveEnter")).toBeGreaterThanOrEqual(ready);
    // istiod is not there yet: the boot waits for it 3 s, no longer.
    const waited = ready - (await reached("kmesh.service", "InactiveExit"));
    expect(waited).toBeLessThan(6_000_000);
    const journal = await machine.output("journalctl", "--boot", "--no-pager", "--output=cat");
    expect(journal).not.toContain("ordering cycle");
    expect(journal).toContain("Reached target network-pre.target");
    await eventually("istiod is found and the service governed", () => machine.governs(), 30_000);
    await machine.until("StatusText", (text) => text.includes("in sync"));
  }

  test("it stands before the network, without istiod, and governs when istiod comes", comesUp);

  test("so it does after a reboot", async () => {
    await machine.reboot();
    await comesUp();
  });
});
