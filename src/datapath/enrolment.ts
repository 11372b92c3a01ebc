/** Who is governed: cgroups, network namespace, exclusions; and who never is: agents. */
import { cgroupId, cgroupLevel } from "../kernel/cgroup.ts";
import { BpfMap } from "../kernel/maps.ts";
import { isInitialNetns, netnsCookie } from "../kernel/netns.ts";
import { taskIdentity } from "../kernel/process.ts";
import type { Match } from "../mesh/model.ts";
import { keptPin } from "./pins.ts";
import type { Tables } from "./tables.ts";

/** Levels of the cgroup tree that the program can look at (MAX_CGROUP_LEVELS). */
const MAX_LEVEL = 15;

/** An address block that is never governed; port 0 is every port. */
export interface Exclusion {
  address: string;
  length: number;
  port: number;
}

/**
 * Enrols exactly these cgroups and what is below them. Gives the records written.
 * Throws when a folder is missing or too deep in the tree.
 */
export function enrolCgroups(tables: Tables, cgroups: readonly string[]): number {
  const wanted = new Map(cgroups.map((path) => [cgroupId(path), levelOf(path)]));
  const levels = [...wanted.values()].reduce((mask, level) => mask | (1n << BigInt(level)), 0n);
  const { enrolled } = tables.maps;
  let writes = 0;
  const { keys, count } = enrolled.entries();
  const held = new Set(new BigUint64Array(keys.slice().buffer).subarray(0, count));
  const value = bytesOf(1n);
  for (const id of wanted.keys()) {
    if (held.has(id)) continue;
    enrolled.update(bytesOf(id), value);
    writes++;
  }
  const everywhere = [...wanted.values()].includes(0);
  writes +=
    tables.settings.set("cgroup_levels", levels) + tables.settings.setFlags({ everyCgroup: everywhere });
  for (const id of held) {
    if (wanted.has(id)) continue;
    enrolled.delete(bytesOf(id));
    writes++;
  }
  return writes;
}

/** Governs the network namespace of this process, or every one. Throws where a kernel before 5.14 can't tell. */
export function governNetns(tables: Tables, which: "own" | "all"): number {
  if (which === "all") return tables.settings.setFlags({ everyNetns: true });
  return tables.settings.set("netns", ownNetns()) + tables.settings.setFlags({ everyNetns: false });
}

/** Never governs connections to these destinations. */
export function exclude(tables: Tables, exclusions: readonly Exclusion[]): number {
  const wanted = exclusions.map(
    ({ address, length, port }): Match => ({ kind: "prefix", address, length, port }),
  );
  const texts = new Set(wanted.map((match) => JSON.stringify(match)));
  const held = tables.exclusions.list();
  const heldTexts = new Set(held.map(({ match }) => JSON.stringify(match)));
  const added = wanted.filter((match) => !heldTexts.has(JSON.stringify(match)));
  const removed = held.filter(({ match }) => !texts.has(JSON.stringify(match)));
  tables.exclusions.add(added.map((match) => ({ match, id: 0 })));
  const flag = tables.settings.setFlags({ exclusions: wanted.length > 0 });
  tables.exclusions.remove(removed.map(({ match }) => match));
  return added.length + removed.length + flag;
}

/** From now on this process's own connections are never governed. Entries of dead processes are taken out. */
export function exemptSelf(agents: BpfMap): void {
  const { keys, values, count } = agents.entries();
  const pids = new Uint32Array(keys.slice().buffer);
  const starts = new BigUint64Array(values.slice().buffer);
  for (let i = 0; i < count; i++) {
    const pid = pids[i] ?? 0;
    if (taskIdentity(pid)?.startTicks !== starts[i])
      agents.delete(new Uint8Array(Uint32Array.of(pid).buffer));
  }
  const self = taskIdentity();
  if (!self) throw new Error("/proc/self/stat can't be read: is /proc mounted?");
  agents.update(new Uint8Array(Uint32Array.of(self.tgid).buffer), bytesOf(self.startTicks));
}

/** The same where another agent holds the tables that are pinned below `bpffs`. */
export function exemptSelfPinned(bpffs: string): void {
  const agents = BpfMap.fromPin(keptPin(bpffs, "agents"));
  try {
    exemptSelf(agents);
  } finally {
    agents.close();
  }
}

function ownNetns(): bigint {
  const cookie = netnsCookie();
  if (cookie !== undefined) return cookie;
  if (isInitialNetns()) return 0n;
  throw new Error(
    "this kernel (before 5.14) can't govern the network namespace of a process alone: " +
      "run kmesh in the initial one, or with --netns all",
  );
}

function levelOf(path: string): number {
  const level = cgroupLevel(path);
  if (level > MAX_LEVEL)
    throw new Error(`${path} lies ${level} levels deep: enrol a cgroup of level ${MAX_LEVEL} at most`);
  return level;
}

function bytesOf(value: bigint): Uint8Array {
  return new Uint8Array(BigUint64Array.of(value).buffer);
}
