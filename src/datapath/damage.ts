/** What somebody has done to what kmesh pinned, in words: what is wrong, what follows from it, and what mends it. */
import { join } from "node:path";
import { pinKind } from "../kernel/bpffs.ts";
import { CGROUP_LINK, CgroupLink, type Hook } from "../kernel/link.ts";
import { BpfMap } from "../kernel/maps.ts";
import { generationsAt, isAlive, pinnedLink, UNKNOWN } from "./generations.ts";
import { fits, heldMaps, holdersAt } from "./held.ts";
import { ABI_ID } from "./layout.gen.ts";
import { generationFolder, HOOK_ORDER, keptPin, linkPin, tablePin } from "./pins.ts";
import { GENERATION_MAPS, KEPT_MAPS, type MapName, NAME_MAPS } from "./tables.ts";

export interface Damage {
  /** Names the thing. */
  what: string;
  consequence: string;
  cure: string;
}

/** What it costs that a hook is not attached. */
const WITHOUT: Partial<Record<Hook, string>> = {
  sock_release: "ends of connections are not counted, so live counts only grow until it is back",
  getpeername4: "apps see the endpoint's IPv4 address instead of the service's",
  getpeername6: "apps see the endpoint's IPv6 address instead of the service's",
  connect4: "new IPv4 connections go where apps send them, past the mesh",
  connect6: "new IPv6 connections go where apps send them, past the mesh",
};

const RELINK =
  "`kmesh run` attaches it again, and an agent that runs within 5 s; the other hooks are not touched";

/** The damage to what is pinned below `bpffs`; [] also when nothing is. Changes nothing. Throws KernelError. */
export function damageAt(bpffs: string): Damage[] {
  return [...damagedHooks(bpffs), ...damagedMaps(bpffs)];
}

/** A map's pin: as it has to be, gone, or something else's. */
export type MapPinState = "right" | "missing" | "foreign";

/** `held` is the id of the map of that name that programs use, where they use one. */
export function mapPinState(name: MapName, path: string, held: number | undefined): MapPinState {
  const kind = pinKind(path);
  if (kind === undefined) return "missing";
  if (kind !== "map") return "foreign";
  using map = BpfMap.fromPin(path);
  return fits(name, map) && (held === undefined || held === map.info.id) ? "right" : "foreign";
}

function damagedHooks(bpffs: string): Damage[] {
  // Made when the hooks are attached for the first time.
  if (pinKind(join(bpffs, "links")) === undefined) return [];
  return HOOK_ORDER.flatMap((hook) => {
    const trouble = troubleOf(bpffs, hook);
    if (trouble === undefined) return [];
    return [
      {
        what: `${hook} is not attached: ${trouble}`,
        consequence: WITHOUT[hook] ?? "",
        cure: RELINK,
      },
    ];
  });
}

function troubleOf(bpffs: string, hook: Hook): string | undefined {
  const path = linkPin(bpffs, hook);
  using link = pinnedLink(bpffs, hook);
  if (link) return isAlive(link.info()) ? undefined : `somebody detached the link ${path}`;
  const kind = pinKind(path);
  if (kind === undefined) return `somebody removed the link ${path}`;
  return `${path} is ${kind === "link" ? linkOf(path) : aKind(kind)}, which is not kmesh's`;
}

function linkOf(path: string): string {
  using link = CgroupLink.fromPin(path);
  const { type, programId } = link.info();
  return `${type === CGROUP_LINK ? "a link" : "a link of another type"} with program ${programId}`;
}

function aKind(kind: string): string {
  return kind === "other" ? "something" : `a ${kind}`;
}

function damagedMaps(bpffs: string): Damage[] {
  const generations = generationsAt(bpffs);
  if (generations.length === 0) return [];
  const held = heldMaps(holdersAt(bpffs));
  const own = generations.some(({ abi }) => abi === ABI_ID);
  const folder = generationFolder(bpffs);
  const pins: [MapName, string][] = [
    ...(own ? GENERATION_MAPS.map((name): [MapName, string] => [name, tablePin(folder, name)]) : []),
    ...KEPT_MAPS.map((name): [MapName, string] => [name, keptPin(bpffs, name)]),
  ];
  const wrong = pins.flatMap(([name, path]) => {
    const state = mapPinState(name, path, held.get(name));
    return state === "right" ? [] : [{ name, path, state, isHeld: held.has(name) }];
  });
  const told = (some: typeof wrong) =>
    some.map(({ path, state }) => `${path} ${state === "missing" ? "is gone" : "is not kmesh's"}`).join(", ");
  const heldOnes = wrong.filter(({ isHeld }) => isHeld);
  const names = wrong.filter(({ name, isHeld }) => !isHeld && NAME_MAPS.includes(name));
  return [
    ...(generations.some(({ abi }) => abi === UNKNOWN)
      ? [
          {
            what: `of the tables that connect() reads no pin is left in ${join(bpffs, "gen")}`,
            consequence: "connections are governed on as they are; nothing can change or show these tables",
            cure: "`kmesh run` makes new ones beside them, which take over when they are complete",
          },
        ]
      : []),
    ...(heldOnes.length > 0
      ? [
          {
            what: `tables that are in use are not pinned any more: ${told(heldOnes)}`,
            consequence: "connections are governed on, until their programs go",
            cure: HELD_CURE,
          },
        ]
      : []),
    ...(names.length > 0
      ? [
          {
            what: `the names of clusters and services: ${told(names)}`,
            consequence:
              "connections are governed on; but no agent can tell which cluster is which, so none starts over these tables",
            cure: NAMES_CURE,
          },
        ]
      : []),
  ];
}

const HELD_CURE =
  "`kmesh down --yes` and a new start, which make all anew; meanwhile new connections go past the mesh";
const NAMES_CURE =
  "`kmesh down --yes`, then start the agent: all is made anew; meanwhile new connections go past the mesh";
