import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AdminServer, Conflict } from "../../admin/server.ts";
import { adminSocket } from "../../admin/status.ts";
import type { Edited } from "../config-file/unit-setting.ts";
import { takeEffect } from "./take-effect.ts";

const UNIT = "shop.service";
const EDITED: Edited = { text: "", changed: [UNIT], already: [], units: [UNIT], everything: false };

let folder: string;
const servers = new Set<AdminServer>();
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-effect-"));
  for (const name of ["run", "state"]) mkdirSync(join(folder, name));
});
afterEach(() => {
  for (const server of servers) server.close();
  servers.clear();
  rmSync(folder, { recursive: true });
});

const folders = () => ({
  runDir: join(folder, "run"),
  stateDir: join(folder, "state"),
  bpffs: join(folder, "none"),
});

/** An agent that governs `units` and answers each reload as scripted. */
async function agent(
  units: string[],
  reload: (server: AdminServer) => string | Promise<string>,
): Promise<AdminServer> {
  const server: AdminServer = await AdminServer.listen(
    adminSocket(folders().runDir),
    { "/config": () => ({ unit: units }) },
    { "/reload": async (_, answer) => answer({ reloaded: await reload(server) }) },
  );
  servers.add(server);
  return server;
}

const take = (patience = { start: 100, handover: 5_000 }) =>
  takeEffect("add", [UNIT], EDITED, folders(), false, "config.yaml", patience);

test("the agent that hands over for longer than a start may take is waited for", async () => {
  const units: string[] = [];
  const until = performance.now() + 1_000;
  await agent(units, () => {
    if (performance.now() < until) throw new Conflict("another agent is about to take over");
    units.push(UNIT);
    return "Reloaded unit";
  });
  expect(await take()).toEqual({ effect: "agent", told: "Reloaded unit" });
});

test("an agent that never ends its hand-over is given up, and the reason is its own", async () => {
  await agent([], () => {
    throw new Conflict("another agent is about to take over");
  });
  await expect(take({ start: 100, handover: 500 })).rejects.toThrow("another agent is about to take over");
});

test("an agent that goes away between two questions: the one after it is asked, or the tables are changed", async () => {
  let goes = 0;
  await agent([], (server) => {
    goes++;
    server.close();
    servers.delete(server);
    throw new Error("gone");
  });
  // Nothing is pinned: the change takes effect at the next start.
  expect((await take()).effect).toBe("next start");
  expect(goes).toBe(1);

  const units: string[] = [];
  await agent(units, async (server) => {
    await agent(units, () => {
      units.push(UNIT);
      return "Reloaded by the successor";
    });
    server.close();
    servers.delete(server);
    throw new Error("gone");
  });
  expect(await take()).toEqual({ effect: "agent", told: "Reloaded by the successor" });
});

test("an agent that reads another file is told apart", async () => {
  await agent(["other.service"], () => "Reloaded: nothing");
  await expect(take()).rejects.toThrow("does not take its units from config.yaml");
});
