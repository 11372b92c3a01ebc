/**
 * Gives 2,000 sockets storage in a new map of connect()'s, and prints by how many MB the kernel memory of its memory cgroup grew:
 *
 *     bun storages.ts MEMORY-CGROUP charged|uncharged
 *
 * The map is made as the agent makes it, or as libbpf does.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { findMemoryRoot } from "../../src/kernel/cgroup.ts";
import { native } from "../../src/kernel/native.ts";
import { BpfObject } from "../../src/kernel/object.ts";
import { MemoryCgroup } from "../lab/memory-cgroup.ts";

const [path = "", how] = process.argv.slice(2);
writeFileSync(join(path, "cgroup.procs"), "0");
const memory = MemoryCgroup.at(path);
using object = BpfObject.open(readFileSync(join(import.meta.dir, "../../dist/bpf/release.bpf.o")), "release");
if (how === "uncharged") {
  const root = findMemoryRoot(readFileSync("/proc/self/mountinfo", "utf8")) ?? "";
  if (!object.makeUncharged("sockets", join(root, "cgroup.procs"))) throw new Error("it was not created");
}
object.load();
using map = object.map("sockets");
const sockets = Array.from({ length: 2_000 }, () =>
  native().kmesh_listen_loopback(2, new Uint8Array(new ArrayBuffer(4))),
);
const value = new Uint8Array(map.info.valueSize);
const before = memory.kernelMemory();
for (const socket of sockets) map.update(new Uint8Array(new Int32Array([socket]).buffer), value);
console.log(memory.kernelMemory() - before);
