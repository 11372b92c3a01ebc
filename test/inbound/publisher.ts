/**
 * An agent's part in inbound policies, in the network namespace where it runs. argv: bpffs folder, "leave" or
 * "flip", then sets of policies as JSON. "leave" makes the last one live and ends; "flip" makes them live in turn, 40 times;
 * TUNNELS names processes of a tunnel. "none" publishes nothing, as an agent before istiod's first push; "off" makes the last one live and turns enforcement off; "cut" makes it govern established connections as well.
 */
import { InboundKeeper } from "../../src/inbound/inbound.ts";
import { ensureBpffs } from "../../src/kernel/bpffs.ts";
import type { Inbound } from "../../src/mesh/inbound.ts";

const [, , bpffs = "", mode = "", ...texts] = process.argv;
const sets = texts.map((text) => JSON.parse(text) as Inbound);
ensureBpffs(bpffs);
const keeper = new InboundKeeper({
  bpffs,
  enforce: true,
  enforceEstablished: mode === "cut",
  tunnels: () => (process.env.TUNNELS ?? "").split(",").filter(Boolean).map(Number),
  log: console.log,
  ownsPins: () => true,
});
const rounds = mode === "flip" ? 40 : 1;
if (mode !== "none") for (let i = 0; i < rounds; i++) for (const set of sets) keeper.publish({ ...set });
if (mode === "off") keeper.configure({ enforce: false });
const { trouble, applied, attached } = keeper.status();
if (trouble !== undefined) {
  console.error(trouble);
  process.exit(1);
}
console.log(`applied ${applied} attached ${attached}`);
keeper.close();
