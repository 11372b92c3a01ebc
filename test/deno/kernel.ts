/**
 * One step of kernel.test.ts, run by Deno: `attach CGROUP FOLDER` loads the sample object, attaches it and pins all;
 * `reattach CGROUP FOLDER` finds it again and puts another program in place. Prints what it saw as JSON.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { ensureBpffs, listPins } from "../../src/kernel/bpffs.ts";
import { cgroupId, cgroupPath } from "../../src/kernel/cgroup.ts";
import { CgroupLink } from "../../src/kernel/link.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { BpfObject, BpfProgram } from "../../src/kernel/object.ts";

const [step, cgroup = "", folder = ""] = process.argv.slice(2);
const COUNTS = join(folder, "counts");
const LINK = join(folder, "connect4");
const REFUSE = join(folder, "refuse");

if (step === "attach") {
  ensureBpffs(folder);
  const sample = fileURLToPath(new URL("../../dist/test/sample.bpf.o", import.meta.url));
  using object = BpfObject.open(readFileSync(sample), "sample");
  object.skipProgram("unverifiable");
  object.load();
  object.map("counts").pin(COUNTS);
  object.program("refuse_connect").pin(REFUSE);
  CgroupLink.attach(object.program("count_connect"), cgroup, "connect4").pin(LINK);
  console.log(JSON.stringify({ pins: listPins(folder).length, path: cgroupPath(cgroupId(cgroup)) }));
} else {
  const counts = new BigUint64Array(BpfMap.fromPin(COUNTS).mmap());
  const link = CgroupLink.fromPin(LINK);
  const before = link.info();
  const refuse = BpfProgram.fromPin(REFUSE);
  link.update(refuse);
  console.log(
    JSON.stringify({
      counted: Number(counts[0]),
      sameCgroup: before.cgroupId === cgroupId(cgroup),
      replaced: before.programId !== refuse.info.id && link.info().programId === refuse.info.id,
    }),
  );
}
