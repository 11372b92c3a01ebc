/** Enrolment in the tables: cgroups, systemd units, network namespace, exclusions, and exempt agents. */
import { existsSync } from "node:fs";
import { basename, dirname } from "node:path";
import { cgroup2Root, cgroupId, cgroupLevel, cgroupPath } from "../../kernel/cgroup.ts";
import { ERRNO, KernelError } from "../../kernel/error.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import { isInitialNetns, netnsCookie } from "../../kernel/netns.ts";
import { socketInodes, type TaskIdentity, taskIdentity } from "../../kernel/process.ts";
import type { Match } from "../../mesh/model.ts";
import { BROADCAST_ID } from "./broadcast.ts";
import { NETNS_UNKNOWN } from "./settings.ts";
import type { Tables } from "./tables.ts";
import { inInitialNamespaces, kernelIdentity } from "./task-identity.ts";
import { unitKey, unitOfKey } from "./unit.ts";

/** An address block that is never governed; port 0 is every port. */
export interface Exclusion {
  address: string;
  length: number;
  port: number;
}

/** The enrolled cgroups and units. */
export interface Enrolled {
  /** cgroup2 folders, with everything below them. */
  cgroups: readonly string[];
  /** systemd units by full name, in any present or future cgroup. */
  units: readonly string[];
}

/**
 * Sets the enrolment. Returns the records written; a change waits for a grace period. Throws for a folder that is missing
 * or not a cgroup, and KernelError when the maps are full.
 */
export function enrol(tables: Tables, { cgroups, units }: Enrolled): number {
  const root = cgroup2Root();
  // cgroupLevel throws for a folder that is not a cgroup.
  const ids = new Map(cgroups.map((path) => [cgroupId(path), cgroupLevel(path)]));
  const everywhere = [...ids.values()].includes(0);
  const changed =
    setKeys(tables.maps.enrolled, [...ids.keys()].map(bytesOf)) +
    setKeys(tables.maps.units, units.map(unitKey)) +
    tables.enrolmentCache.setRoot(cgroupId(root));
  if (changed > 0) tables.enrolmentCache.forget();
  return changed + tables.settings.setFlags({ everyCgroup: everywhere });
}

/** Enrols one cgroup in tables that no program reads yet. */
export function enrolCgroup(tables: Tables, id: bigint): void {
  tables.maps.enrolled.update(bytesOf(id), bytesOf(1n));
  tables.enrolmentCache.setRoot(cgroupId(cgroup2Root()));
}

/** Adds and removes units. Returns the records written. Throws KernelError when the map is full. */
export function changeUnits(tables: Tables, change: "add" | "remove", units: readonly string[]): number {
  const held = new Set(enrolledUnits(tables));
  const wanted = units.filter((unit) => held.has(unit) === (change === "remove"));
  for (const unit of wanted) {
    if (change === "add") tables.maps.units.update(unitKey(unit), bytesOf(1n));
    else tables.maps.units.delete(unitKey(unit));
  }
  if (wanted.length > 0) tables.enrolmentCache.forget();
  return wanted.length;
}

/** The units that are enrolled by name, sorted. */
export function enrolledUnits(tables: Pick<Tables, "maps">): string[] {
  return keysOf(tables.maps.units).map(unitOfKey).sort();
}

/** The ids of the enrolled cgroups. */
export function enrolledIds(tables: Pick<Tables, "maps">): bigint[] {
  return keysOf(tables.maps.enrolled).map((key) => new BigUint64Array(key.buffer)[0] ?? 0n);
}

/** Makes `wanted` the keys of a map whose values are all 1. Adds new keys before it removes old ones. Returns the writes. */
function setKeys(map: BpfMap, wanted: readonly Uint8Array[]): number {
  const text = (key: Uint8Array) => Buffer.from(key).toString("hex");
  const held = new Map(keysOf(map).map((key) => [text(key), key]));
  const value = bytesOf(1n);
  let writes = 0;
  for (const key of wanted) {
    if (held.delete(text(key))) continue;
    map.update(key, value);
    writes++;
  }
  for (const key of held.values()) if (map.delete(key)) writes++;
  return writes;
}

function keysOf(map: BpfMap): Uint8Array[] {
  const { keys, count } = map.entries();
  const size = map.info.keySize;
  return Array.from({ length: count }, (_, i) => keys.slice(i * size, (i + 1) * size));
}

/** Returns a function that says whether sockets of a cgroup (by id) are enrolled now. It caches its answers. */
export function enrolmentTest(tables: Tables): (cgroup: bigint) => boolean {
  if (tables.settings.flags.everyCgroup) return () => true;
  const ids = new Set(enrolledIds(tables));
  const units = new Set(enrolledUnits(tables));
  const known = new Map<bigint, boolean>();
  return (cgroup) => {
    const before = known.get(cgroup);
    if (before !== undefined) return before;
    const path = ids.size + units.size > 0 ? cgroupPath(cgroup) : undefined;
    const answer = path !== undefined && existsSync(path) && isEnrolled(path, ids, units);
    known.set(cgroup, answer);
    return answer;
  };
}

/** The same walk to the root as find_enrolment() in bpf/include/enrolment.h. */
function isEnrolled(path: string, ids: ReadonlySet<bigint>, units: ReadonlySet<string>): boolean {
  const root = cgroup2Root();
  let byName = false;
  for (let at = path; at.startsWith(root); at = dirname(at)) {
    if (ids.has(cgroupId(at))) return true;
    if (at === root) return byName;
    const name = basename(at).replace(/^_/, "");
    if (!name.endsWith(".slice")) byName = false;
    if (units.has(name)) byName = true;
  }
  return false;
}

/** Inodes of the sockets of this process and of exempt agents, which are never governed. Limited to this pid namespace. */
export function agentSockets(tables: Tables): Set<number> {
  const pids = inInitialNamespaces() ? exemptTasks(tables.maps.agents).map(({ tgid }) => tgid) : [];
  return new Set([process.pid, ...pids].flatMap(socketInodes));
}

/**
 * Governs this process's network namespace, or every one. Gives the number of writes. Throws on a kernel before 5.14 that can't
 * identify the one that is to be governed alone.
 */
export function governNetns(tables: Tables, which: "own" | "all"): number {
  const own = ownNetns();
  if (own === undefined && which === "own") {
    throw new Error(
      "this kernel (before 5.14) can't govern the network namespace of a process alone: " +
        "run kmesh in the initial one, or with --netns all",
    );
  }
  const written = tables.settings.set("netns", own ?? NETNS_UNKNOWN);
  return written + tables.settings.setFlags({ everyNetns: which === "all" });
}

/** Sets the destinations that are never governed. */
export function exclude(tables: Tables, exclusions: readonly Exclusion[]): number {
  const wanted = exclusions.map(
    ({ address, length, port }): Match => ({ kind: "prefix", address, length, port }),
  );
  const texts = new Set(wanted.map((match) => JSON.stringify(match)));
  const held = tables.exclusions.list().filter(({ id }) => id !== BROADCAST_ID);
  const heldTexts = new Set(held.map(({ match }) => JSON.stringify(match)));
  const added = wanted.filter((match) => !heldTexts.has(JSON.stringify(match)));
  const removed = held.filter(({ match }) => !texts.has(JSON.stringify(match)));
  tables.exclusions.add(added.map((match) => ({ match, id: 0 })));
  const flag = tables.settings.setFlags({ exclusions: wanted.length > 0 });
  tables.exclusions.remove(removed.map(({ match }) => match));
  return added.length + removed.length + flag;
}

/**
 * Exempts this process's connections. Removes entries of dead processes. In a pid namespace, where other processes are not
 * visible, it removes the oldest entry when the map is full. Throws KernelError.
 */
export function exemptSelf(agents: BpfMap): void {
  if (inInitialNamespaces()) removeDead(agents);
  try {
    exempt(agents, "self");
  } catch (error) {
    if (!(error instanceof KernelError) || error.errno !== ERRNO.E2BIG) throw error;
    const [oldest] = exemptTasks(agents).sort((a, b) => Number(a.startTicks - b.startTicks));
    if (oldest) unexempt(agents, oldest);
    exempt(agents, "self");
  }
}

/**
 * Exempts connections of this process, or of a child of this thread. Returns the argument for `unexempt`. Throws when the
 * process is gone, and KernelError.
 */
export function exempt(agents: BpfMap, pid: number | "self"): TaskIdentity {
  const task = kernelIdentity(pid);
  if (!task) throw new Error(`/proc/${pid}/stat can't be read: is /proc mounted?`);
  agents.update(tgidKey(task), bytesOf(task.startTicks));
  return task;
}

export function unexempt(agents: BpfMap, task: TaskIdentity): void {
  agents.delete(tgidKey(task));
}

function exemptTasks(agents: BpfMap): TaskIdentity[] {
  const { keys, values, count } = agents.entries();
  const pids = new Uint32Array(keys.slice().buffer);
  const starts = new BigUint64Array(values.slice().buffer);
  return Array.from({ length: count }, (_, i) => ({ tgid: pids[i] ?? 0, startTicks: starts[i] ?? 0n }));
}

function removeDead(agents: BpfMap): void {
  for (const task of exemptTasks(agents))
    if (taskIdentity(task.tgid)?.startTicks !== task.startTicks) unexempt(agents, task);
}

function tgidKey({ tgid }: TaskIdentity): Uint8Array {
  return new Uint8Array(Uint32Array.of(tgid).buffer);
}

function ownNetns(): bigint | undefined {
  return netnsCookie() ?? (isInitialNetns() ? 0n : undefined);
}

function bytesOf(value: bigint): Uint8Array {
  return new Uint8Array(BigUint64Array.of(value).buffer);
}
