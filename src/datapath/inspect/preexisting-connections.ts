/**
 * Connections that bypass the mesh although their address is governed: they began before the hooks were attached, before
 * their cgroup was enrolled, or before the service existed. Found in the kernel's list of sockets.
 */
import { cgroupPath } from "../../kernel/cgroup.ts";
import { CONNECTED, listSockets, type SocketBatch, TCP } from "../../kernel/net/sockets.ts";
import { netnsCookie } from "../../kernel/netns.ts";
import { formatAddress } from "../../mesh/address.ts";
import { readDescriptor } from "../mesh-tables/descriptor.ts";
import { decodeTarget } from "../mesh-tables/target.ts";
import { agentSockets, enrolmentTest } from "../tables/enrolment.ts";
import type { Tables } from "../tables/tables.ts";
import { exemption, findFrontend } from "./explain.ts";
import { openPinned } from "./inspect.ts";

export interface PreexistingConnections {
  connections: number;
  /** False when the time limit was reached before all sockets were read: there may be more. */
  complete: boolean;
  /** Counts by the cgroup in which the socket was created, in descending order. */
  cgroups: { cgroup: string; connections: number }[];
}

/** Time limit, milliseconds. 100,000 sockets take a fifth of it. */
const PATIENCE = 1_000;

/** A candidate, until the lists of listeners and agents are complete. */
interface Successor {
  localPort: number;
  inode: number;
  cgroup: bigint;
}

/**
 * Counts them in this process's network namespace. undefined when that is not the governed one, in shadow mode, where all
 * connections bypass the mesh, and without enrolment. Throws NothingPinned and KernelError.
 */
export function preexistingConnections(bpffs: string): PreexistingConnections | undefined {
  const tables = openPinned(bpffs);
  try {
    return governsHere(tables) ? count(tables) : undefined;
  } finally {
    tables.close();
  }
}

function governsHere(tables: Tables): boolean {
  const { shadow, everyNetns } = tables.settings.flags;
  return !shadow && (everyNetns || isOwnNetns(tables));
}

/** Whether this process's network namespace is the governed one. */
export function isOwnNetns(tables: Tables): boolean {
  const governed = tables.settings.get("netns");
  const own = netnsCookie();
  // Before 5.14 only the initial namespace can be governed, and a namespace without a cookie counts as it.
  return own === undefined ? governed === 0n : governed === own;
}

function count(tables: Tables): PreexistingConnections {
  const end = performance.now() + PATIENCE;
  const isEnrolled = enrolmentTest(tables);
  const isGoverned = governedTest(tables);
  const listening = new Uint8Array(65536);
  const candidates: Successor[] = [];
  let complete = true;
  for (const batch of listSockets([TCP.listen, ...CONNECTED], tables.maps.sockets)) {
    for (let i = 0; i < batch.count; i++) {
      const socket = batch.at(i);
      if (socket.state === TCP.listen) listening[socket.localPort] = 1;
      // A socket with a value was decided by kmesh.
      else if (!socket.hasValue && isEnrolled(socket.cgroup) && isGoverned(socket))
        candidates.push({ localPort: socket.localPort, inode: socket.inode, cgroup: socket.cgroup });
    }
    complete = performance.now() < end;
    if (!complete) break;
  }
  const agents = candidates.length > 0 ? agentSockets(tables) : new Set<number>();
  const older = candidates.filter(
    // A connection to a listening port was accepted, not made by connect().
    ({ localPort, inode }) => listening[localPort] === 0 && !agents.has(inode),
  );
  return { connections: older.length, complete, cgroups: byCgroup(older) };
}

function byCgroup(sockets: readonly Successor[]): PreexistingConnections["cgroups"] {
  const counts = new Map<bigint, number>();
  for (const { cgroup } of sockets) counts.set(cgroup, (counts.get(cgroup) ?? 0) + 1);
  return [...counts]
    .map(([id, connections]) => ({ cgroup: cgroupPath(id) ?? `cgroup ${id}`, connections }))
    .sort((a, b) => b.connections - a.connections);
}

/** Whether a connect() to the socket's address would be redirected or refused now. */
function governedTest(tables: Tables): (socket: SocketBatch) => boolean {
  const known = new Map<string, boolean>();
  return (socket) => {
    const at = `${Buffer.from(socket.remote).toString("latin1")}${socket.remotePort}`;
    const before = known.get(at);
    if (before !== undefined) return before;
    const answer = isGoverned(tables, formatAddress(socket.remote), socket.remotePort);
    known.set(at, answer);
    return answer;
  };
}

function isGoverned(tables: Tables, address: string, port: number): boolean {
  if (exemption(tables, address, port) !== undefined) return false;
  const { action, value } = decodeTarget(findFrontend(tables, address, port).word);
  return action === "refuse" || (action === "cluster" && !isPassing(tables, value));
}

function isPassing(tables: Tables, cluster: number): boolean {
  const id = tables.clusters.has(cluster) ? Number(tables.clusters.long(cluster)) : 0;
  return id !== 0 && readDescriptor(tables.descriptors, id).kind === "pass";
}
