/**
 * An agent's data path and a start while one pin can't be opened. Run as root without CAP_DAC_OVERRIDE, with the pin's path
 * and the options as JSON; writes what it saw as JSON.
 */

import { chmodSync, existsSync, rmSync } from "node:fs";
import { Datapath } from "../../src/datapath/datapath.ts";
import { keptPin } from "../../src/datapath/generation/pins.ts";
import { removePinned } from "../../src/datapath/removal.ts";
import { damageOf } from "../../src/machine/damage.ts";
import { eventually } from "../lab/process.ts";

const [path = "", text = ""] = process.argv.slice(2);
const options = JSON.parse(text);
const folders = { bpffs: options.bpffs, stateDir: "/", runDir: "/" };
const told: string[] = [];

const open = () => Datapath.open({ ...options, upkeep: 20, log: (line: string) => told.push(line) });
const message = (step: () => unknown): string => {
  try {
    step();
    return "";
  } catch (error) {
    return String(error);
  }
};

const agent = open();
const other = keptPin(options.bpffs, path.endsWith("/agents") ? "units" : "agents");
chmodSync(path, 0);
await eventually("it is told", () => told.join().includes("EACCES"));
// One that can't be looked at holds up no other.
rmSync(other);
await eventually("the other pin is made again", () => existsSync(other));
const repaired = told.includes(`pinned again: ${other}`);
const damage = damageOf(folders, undefined, () => agent.damage());
chmodSync(path, 0o600);
await eventually(
  "it is well again",
  () => message(() => agent.damage()) === "" && agent.damage().length === 0,
);
chmodSync(path, 0);
agent.close();
const start = message(open);
const down = path.includes("/links/") ? message(() => removePinned(options.bpffs)) : "";
console.log(JSON.stringify({ told, damage: JSON.stringify(damage), repaired, cleared: true, start, down }));
process.exit(0);
