/** Whether an object at one of kmesh's paths is kmesh's. Other programs may pin there, too. */
import { CGROUP_LINK, CgroupLink, HOOKS, type Hook } from "../../kernel/link.ts";
import { BpfMap } from "../../kernel/maps.ts";
import { BpfProgram } from "../../kernel/object.ts";
import { openPinned } from "../../kernel/pinned.ts";
import { maps as LAYOUTS } from "../tables/layout.gen.ts";
import type { MapName } from "../tables/tables.ts";

/**
 * The link, if it runs a kmesh program of any version at `hook`, or at any hook. The caller closes it. Like the other
 * functions here, throws KernelError when the object can't be examined.
 */
export function ownLink(path: string, hook?: Hook): CgroupLink | undefined {
  const fd = openPinned(path, "link");
  return fd === undefined ? undefined : keepIf(CgroupLink.adopt(fd), (link) => isOwnLink(link, hook));
}

/** Whether a link of any kind runs a kmesh program at `hook`, or at any hook. Throws KernelError. */
export function isOwnLink(link: CgroupLink, hook?: Hook): boolean {
  const { type, programId, attachType } = link.info();
  if (type !== CGROUP_LINK || (hook !== undefined && attachType !== HOOKS[hook])) return false;
  using program = BpfProgram.fromId(programId);
  return isOwnProgram(program, hook);
}

/** The program, if it is kmesh's for `hook`. The caller closes it. */
export function ownProgram(path: string, hook: Hook): BpfProgram | undefined {
  const fd = openPinned(path, "program");
  return fd === undefined
    ? undefined
    : keepIf(BpfProgram.adopt(fd), (program) => isOwnProgram(program, hook));
}

/** The map, if it has the layout of the table `name`. The caller closes it. */
export function ownTable(path: string, name: MapName): BpfMap | undefined {
  const fd = openPinned(path, "map");
  if (fd === undefined) return undefined;
  return keepIf(BpfMap.adopt(fd), (map) => map.info.name === name && looksLike(map, name));
}

/** Returns the object if it is kmesh's. Closes it otherwise, also after an error. */
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

/** Every program of every version has its hook's name and uses the socket storage, whose layout never changes. */
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

/** Cache by program id. The kernel reuses an id only after all others. */
const judged = new Map<string, boolean>();

function isSockets(id: number): boolean {
  using map = BpfMap.fromId(id);
  return map.info.name === "sockets" && looksLike(map, "sockets");
}
