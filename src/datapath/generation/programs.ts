/** This build's BPF programs: their objects, and how they are loaded. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { findMemoryRoot } from "../../kernel/cgroup.ts";
import { fetchAtomics } from "../../kernel/features.ts";
import type { Hook } from "../../kernel/link.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import { BpfObject, type BpfProgram } from "../../kernel/object.ts";
import { asset } from "../../runtime/assets.ts";
import type { MapName } from "../tables/tables.ts";

/** The BPF objects, in the order in which they are loaded: the first has every map. */
const OBJECTS = ["connect", "release"] as const;

/** The code that this build loads on this kernel. */
export interface Code {
  images: readonly Uint8Array[];
  /** The name of the programs' folder. */
  hash: string;
}

/** Loaded programs, and all maps that they use. */
export interface Loaded {
  maps: Map<MapName, BpfMap>;
  programs: Map<Hook, BpfProgram>;
}

/** Programs that were loaded ahead, before it is known which maps exist when they are needed. */
export interface LoadedAhead {
  /** The programs, which the caller then owns; undefined when they don't match the pinned maps. */
  take(pinned: ReadonlyMap<MapName, BpfMap>): Loaded | undefined;
}

export function ownCode(): Code {
  const images = OBJECTS.map((name) => asset(fetchAtomics() ? `${name}.bpf.o` : `${name}.compat.bpf.o`));
  const hash = createHash("sha256");
  for (const image of images) hash.update(image);
  return { images, hash: hash.digest("hex").slice(0, 12) };
}

/**
 * Loads the programs over `maps` and adds missing maps to it. The caller closes all of them, the maps also after an error.
 * Throws KernelError with the verifier's message.
 */
export function loadPrograms({ images }: Code, maps: Map<MapName, BpfMap>): Map<Hook, BpfProgram> {
  const programs = new Map<Hook, BpfProgram>();
  try {
    OBJECTS.forEach((name, i) => {
      loadObject(images[i] ?? new Uint8Array(), name, maps, programs);
    });
    return programs;
  } catch (error) {
    for (const program of programs.values()) program.close();
    throw error;
  }
}

function loadObject(
  image: Uint8Array,
  name: string,
  maps: Map<MapName, BpfMap>,
  programs: Map<Hook, BpfProgram>,
): void {
  using object = BpfObject.open(image, name);
  for (const map of object.mapNames as MapName[]) {
    const held = maps.get(map);
    if (held) object.useMap(map, held);
    else if (map === "sockets") makeUncharged(object, map);
  }
  object.load();
  for (const map of object.mapNames as MapName[]) if (!maps.has(map)) maps.set(map, object.map(map));
  for (const hook of object.programNames as Hook[]) programs.set(hook, object.program(hook));
}

/** The programs allocate this map's elements in connect(), so a charge would be a part of its cost. */
function makeUncharged(object: BpfObject, map: MapName): void {
  const root = findMemoryRoot(readFileSync("/proc/self/mountinfo", "utf8"));
  if (root !== undefined) object.makeUncharged(map, join(root, "cgroup.procs"));
}
