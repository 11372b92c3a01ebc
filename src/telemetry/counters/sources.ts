/** Names of sources (bpf/include/source.h) by the kernel's numbers. */
import { readFileSync } from "node:fs";
import { fixedText } from "../../kernel/info.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import { longAt, viewOf } from "./rows.ts";

export interface Source {
  kind: "unit" | "cgroup" | "user" | "unknown";
  /** "nginx.service", "kubepods", "alice"; "unknown". */
  name: string;
}

/** The bit that marks a user id. */
const USER = 2 ** 47;
const UNIT_SUFFIX = /\.(service|scope|socket|mount|swap)$/;

/** Reads names from the map `source_names`, which stays the caller's, and users from /etc/passwd. */
export class Sources {
  readonly #map: BpfMap;
  #names = new Map<number, string>();
  #users: Map<number, string> | undefined;

  constructor(map: BpfMap) {
    this.#map = map;
  }

  /** Reads the map again. Call it before a series of `of`. Throws KernelError. */
  refresh(): void {
    const { keys, values, count } = this.#map.entries();
    const { keySize, valueSize } = this.#map.info;
    const view = viewOf(keys);
    this.#names = new Map();
    for (let i = 0; i < count; i++)
      this.#names.set(
        longAt(view, i * keySize),
        fixedText(values.subarray(i * valueSize, (i + 1) * valueSize)),
      );
  }

  /** The number of names at the last `refresh`. */
  get count(): number {
    return this.#names.size;
  }

  of(source: number): Source {
    if (source >= USER) return { kind: "user", name: this.#user(source % 2 ** 32) };
    const name = this.#names.get(source);
    if (name === undefined) return { kind: "unknown", name: "unknown" };
    return { kind: UNIT_SUFFIX.test(name) ? "unit" : "cgroup", name };
  }

  #user(id: number): string {
    this.#users ??= readUsers();
    return this.#users.get(id) ?? String(id);
  }
}

function readUsers(): Map<number, string> {
  const users = new Map<number, string>();
  try {
    for (const line of readFileSync("/etc/passwd", "utf8").split("\n")) {
      const [name = "", , id = ""] = line.split(":");
      if (/^\d+$/.test(id) && !users.has(Number(id))) users.set(Number(id), name);
    }
  } catch {
    // Users are then named by number.
  }
  return users;
}
