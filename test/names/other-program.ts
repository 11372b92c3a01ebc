/**
 * Other programs at an interface's egress, as Cilium or an operator has them: `bun other-program.ts INTERFACE`. A tcx link,
 * and a filter of the clsact qdisc. They pass everything on, and count the DNS queries that they see. Prints "attached", then
 * both counts for each line of standard input.
 */
import { createInterface } from "node:readline";
import { native } from "../../src/kernel/native.ts";
import { TcxLink } from "../../src/kernel/net/egress.ts";
import { interfaces } from "../../src/kernel/net/interfaces.ts";
import { BpfObject } from "../../src/kernel/object.ts";
import { countsOf } from "../../src/names/counts.ts";
import { asset } from "../../src/runtime/assets.ts";

const found = interfaces().find(({ name }) => name === process.argv[2]);
if (!found) throw new Error(`there is no interface ${process.argv[2]}`);
// The program of names over tables of their own, which are switched off: it counts what it lets pass.
const [first, second] = ["tcx", "clsact"].map(() => {
  const object = BpfObject.open(asset("names.compat.bpf.o"), "names");
  object.load();
  return { program: object.program("names_ethernet"), counts: object.map("names_counts") };
});
if (!first || !second) throw new Error("unreachable");
const link = TcxLink.attach(first.program, found.index);
const error = native().kmesh_clsact_attach(second.program.fd, found.index, 7, 5);
console.log(link && error === 0 ? "attached" : `not attached: ${error}`);
for await (const _ of createInterface(process.stdin))
  console.log([first, second].map(({ counts }) => countsOf(counts)["passed-off"]).join(" "));
link?.close();
process.exit(0);
