/**
 * The pins of inbound connections:
 *
 *     inbound/keep/<map>             policies as text, counters, the tunnel's listeners: they outlive every layout
 *     inbound/<abi>/tables/<map>     the tables of one layout
 *     inbound/<abi>/programs/<code>  the program over them, by the hash of its object file
 *     inbound/link                   the link to the network namespace
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { dirname, join } from "node:path";
import { ensureBpffs, isOnBpffs, unpin } from "../kernel/bpffs.ts";
import { fetchAtomics } from "../kernel/features.ts";
import { BpfMap } from "../kernel/maps.ts";
import { BpfObject, BpfProgram } from "../kernel/object.ts";
import { KEPT_INBOUND_MAPS, type KeptInboundMap, keptInboundPin } from "../policy/pinned.ts";
import { asset } from "../runtime/assets.ts";
import * as layout from "./layout.gen.ts";

type MapName = keyof typeof layout.maps;
export type InboundMaps = Readonly<Record<MapName, BpfMap>>;

const MAPS = Object.keys(layout.maps) as MapName[];
const PROGRAM = "inbound";

export interface InboundOpened {
  maps: InboundMaps;
  program: BpfProgram;
  /** Hash of the program's object file. */
  code: string;
}

export function linkPin(bpffs: string): string {
  return join(bpffs, "inbound", "link");
}

function folderOf(bpffs: string): string {
  return join(bpffs, "inbound", layout.ABI_ID);
}

/** The path of a map. */
export function inboundPin(bpffs: string, name: MapName): string {
  return KEPT_INBOUND_MAPS.includes(name as KeptInboundMap)
    ? keptInboundPin(bpffs, name as KeptInboundMap)
    : join(folderOf(bpffs), "tables", name);
}

function programPin(bpffs: string, code: string): string {
  return join(folderOf(bpffs), "programs", code);
}

/**
 * Adopts the pins, and creates missing objects empty. Mounts no bpffs: the data path has mounted one. Throws KernelError, and
 * an Error when `bpffs` is not a bpffs.
 */
export function openInbound(bpffs: string): InboundOpened {
  if (!isOnBpffs(bpffs)) throw new Error(`the bpffs at ${bpffs} is no longer mounted`);
  const image = asset(fetchAtomics() ? "inbound.bpf.o" : "inbound.compat.bpf.o");
  const code = createHash("sha256").update(image).digest("hex").slice(0, 12);
  for (const name of MAPS) ensureBpffs(dirname(inboundPin(bpffs, name)));
  ensureBpffs(dirname(programPin(bpffs, code)));
  const maps: Partial<Record<MapName, BpfMap>> = {};
  try {
    for (const name of MAPS) {
      const pin = inboundPin(bpffs, name);
      if (existsSync(pin)) maps[name] = BpfMap.fromPin(pin);
    }
    const pin = programPin(bpffs, code);
    const program = existsSync(pin) ? BpfProgram.fromPin(pin) : undefined;
    if (program && reads(program, maps)) return { maps: maps as InboundMaps, program, code };
    program?.close();
    return { maps: maps as InboundMaps, program: load(bpffs, image, maps, pin), code };
  } catch (error) {
    for (const map of Object.values(maps)) map.close();
    throw error;
  }
}

/** Whether the program reads these maps. One map may have been lost and created again. */
function reads(program: BpfProgram, maps: Partial<Record<MapName, BpfMap>>): boolean {
  const ids = new Set(program.mapIds());
  return MAPS.every((name) => {
    const map = maps[name];
    return map !== undefined && ids.has(map.info.id);
  });
}

/** Completes `maps`, and pins the new ones. */
function load(
  bpffs: string,
  image: Uint8Array,
  maps: Partial<Record<MapName, BpfMap>>,
  pin: string,
): BpfProgram {
  using object = BpfObject.open(image, "inbound");
  for (const name of MAPS) {
    const map = maps[name];
    if (map) object.useMap(name, map);
  }
  object.load();
  const program = object.program(PROGRAM);
  try {
    for (const name of MAPS) {
      if (maps[name]) continue;
      const map = object.map(name);
      maps[name] = map;
      map.pin(inboundPin(bpffs, name));
    }
    const text = maps.inbound_text;
    // No program reads this map. Bind it to the program, so that a start finds it when its pin is lost.
    if (text) program.bind(text);
    unpin(pin);
    program.pin(pin);
    return program;
  } catch (error) {
    program.close();
    throw error;
  }
}

/** Pins removed objects again. Returns their paths. Throws KernelError. */
export function repinInbound(bpffs: string, { maps, program, code }: InboundOpened): string[] {
  if (!isOnBpffs(bpffs)) return [];
  const pins: [path: string, held: { pin(path: string): void }][] = [
    ...MAPS.map((name): [string, BpfMap] => [inboundPin(bpffs, name), maps[name]]),
    [programPin(bpffs, code), program],
  ];
  const lost = pins.filter(([path]) => !existsSync(path));
  for (const [path, held] of lost) {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    held.pin(path);
  }
  return lost.map(([path]) => path);
}

/** Removes other layouts and other code, which are no longer attached. */
export function removeOtherInbound(bpffs: string, code: string): void {
  const all = join(bpffs, "inbound");
  for (const name of readdirSync(all))
    if (name !== "keep" && name !== "link" && name !== layout.ABI_ID) unpin(join(all, name));
  const programs = dirname(programPin(bpffs, code));
  for (const name of readdirSync(programs)) if (name !== code) unpin(join(programs, name));
}

export function closeInbound({ maps, program }: InboundOpened): void {
  program.close();
  for (const map of Object.values(maps)) map.close();
}

/** Pins `link` in place of another pin, whose link stays attached until then. */
export function pinLink(path: string, link: { pin(path: string): void }): void {
  const fresh = `${path}_new`;
  unpin(fresh);
  link.pin(fresh);
  renameSync(fresh, path);
}
