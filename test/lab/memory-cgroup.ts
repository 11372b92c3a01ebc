/** A memory cgroup, in either hierarchy: what the kernel charged to the processes in it, also after they are gone. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cgroup2Mount, ownName } from "./namespace.ts";

/** Where version 1 has its memory controller; undefined where it is version 2's. */
function version1(): string | undefined {
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    if (after.startsWith("cgroup ") && /[ ,]memory(,|$)/.test(after)) return before.split(" ")[4];
  }
  return undefined;
}

export class MemoryCgroup {
  readonly path: string;
  readonly #v1: boolean;

  private constructor(path: string, v1: boolean) {
    this.path = path;
    this.#v1 = v1;
  }

  /** Makes one; undefined where no memory controller can be had. The caller removes `path` once it is empty. */
  static create(): MemoryCgroup | undefined {
    const v1 = version1();
    const parent = v1 ?? cgroup2Mount();
    if (v1 === undefined) {
      const enabled = readFileSync(`${parent}/cgroup.subtree_control`, "utf8").split(/\s+/);
      if (!enabled.includes("memory")) return undefined;
    }
    const path = `${parent}/${ownName("mem")}`;
    mkdirSync(path);
    return new MemoryCgroup(path, v1 !== undefined);
  }

  /** One that another process made, by its path. */
  static at(path: string): MemoryCgroup {
    return new MemoryCgroup(path, version1() !== undefined);
  }

  /** Kernel memory that is charged to it, MB: maps, programs and the like, and what the kernel keeps for processes. */
  kernelMemory(): number {
    if (this.#v1) return Number(readFileSync(`${this.path}/memory.kmem.usage_in_bytes`, "utf8")) / 1e6;
    const stat = readFileSync(`${this.path}/memory.stat`, "utf8");
    return Number(/^kernel (\d+)/m.exec(stat)?.[1]) / 1e6;
  }

  /** What its processes hold of their own, MB: no pages of files. */
  processMemory(): number {
    const stat = readFileSync(`${this.path}/memory.stat`, "utf8");
    return Number(new RegExp(`^${this.#v1 ? "rss" : "anon"} (\\d+)`, "m").exec(stat)?.[1]) / 1e6;
  }

  /** Gives back what can be given back: inodes and directory entries of files that nobody has open. */
  reclaim(): void {
    const file = this.#v1 ? "memory.force_empty" : "memory.reclaim";
    if (!existsSync(`${this.path}/${file}`)) return;
    try {
      writeFileSync(`${this.path}/${file}`, this.#v1 ? "0" : "1G");
    } catch {
      // EAGAIN and EBUSY: not all could be given back.
    }
  }
}
