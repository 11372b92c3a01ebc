/** Whether what is pinned at one of our paths is ours: other programs pin there too, by mistake or on purpose. */
import { CGROUP_LINK, CgroupLink, HOOKS, type Hook } from "../../kernel/link.ts";
import { BpfMap } from "../../kernel/maps.ts";
import { BpfProgram } from "../../kernel/object.ts";
import { pinnedAt } from "../../kernel/pinned.ts";
import { maps as LAYOUTS } from "../tables/layout.gen.ts";
import type { MapName } from "../tables/tables.ts";

/**
 * The link, when it runs a program of kmesh's, of whatever version, at `hook`, or at any. The caller closes it. Throws
 * KernelError, as the others here do, when that can't be told.
 */
export function ownLink(path: string, hook?: Hook): CgroupLink | undefined {
  if (pinnedAt(path)?.kind !== "link") return undefined;
  return keepIf(CgroupLink.fromPin(path), (link) => isOwnLink(link, hook));
}

/** Whether the link, of whatever kind it is, runs a program of kmesh's at `hook`, or at any. Throws KernelError. */
export function isOwnLink(link: CgroupLink, hook?: Hook): boolean {
  const { type, programId, attachType } = link.info();
  if (type !== CGROUP_LINK || (hook !== undefined && attachType !== HOOKS[hook])) return false;
  using program = BpfProgram.fromId(programId);
  return isOwnProgram(program, hook);
}

/** The program, when it is kmesh's for `hook`. The caller closes it. */
export function ownProgram(path: string, hook: Hook): BpfProgram | undefined {
  if (pinnedAt(path)?.kind !== "program") return undefined;
  return keepIf(BpfProgram.fromPin(path), (program) => isOwnProgram(program, hook));
}

/** The map, when it looks like the table `name`. The caller closes it. */
export function ownTable(path: string, name: MapName): BpfMap | undefined {
  const pinned = pinnedAt(path);
  if (pinned?.kind !== "map" || pinned.name !== name) return undefined;
  return keepIf(BpfMap.fromPin(path), (map) => looksLike(map, name));
}

/** Closes it otherwise, also when that throws. */
function keepIf<T extends { close(): void }>(held: T, isOwn: (held: T) => boolean): T | undefined {
  let own = false;
  try {
    own = isOwn(held);
  } finally {
    if (!own) held.close();
  }
  return own ? held : undefined;
}

export function looksLike({ info }: Pick<BpfMap, "info">, name: MapName): boolean {
  const { type, keySize, valueSize, flags } = LAYOUTS[name];
  return (
    info.type === type && info.keySize === keySize && info.valueSize === valueSize && info.flags === flags
  );
}

/** Each program of each version is named after its hook, and uses the storage of sockets, whose layout never changes. */
function isOwnProgram(program: BpfProgram, hook: Hook | undefined): boolean {
  const { id, tag, name } = program.info;
  if (hook !== undefined && name !== hook) return false;
  const key = `${id} ${tag}`;
  let own = judged.get(key);
  if (own === undefined) {
    own = program.mapIds().some(isSockets);
    judged.set(key, own);
  }
  return own;
}

/** Programs that were looked at, each once: the kernel gives no number a second time before it has given all. */
const judged = new Map<string, boolean>();

function isSockets(id: number): boolean {
  using map = BpfMap.fromId(id);
  return map.info.name === "sockets" && looksLike(map, "sockets");
}
