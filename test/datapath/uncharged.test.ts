/** No memory cgroup is charged for what connect() stores on a socket. */
import { expect, test } from "bun:test";
import { rmdirSync } from "node:fs";
import { join } from "node:path";
import { MemoryCgroup } from "../lab/memory-cgroup.ts";
import { output } from "../lab/process.ts";

/** MB of kernel memory that 2,000 sockets' storage cost a memory cgroup. */
async function charged(how: "charged" | "uncharged"): Promise<number> {
  const memory = MemoryCgroup.create();
  if (memory === undefined) throw new Error("this machine has no memory controller that a test can use");
  try {
    return Number(await output([process.execPath, join(import.meta.dir, "storages.ts"), memory.path, how]));
  } finally {
    rmdirSync(memory.path);
  }
}

test.skipIf(process.getuid?.() !== 0)("a socket's storage is charged to nobody", async () => {
  expect(await charged("charged")).toBeGreaterThan(0.5);
  expect(await charged("uncharged")).toBeLessThan(0.25);
});
