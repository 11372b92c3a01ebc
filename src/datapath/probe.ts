/**
 * A real connection through programs that nobody meets yet: they hang at a cgroup of their own, in which a child connects
 * to a frontend of documentation addresses, whose endpoint is a listener of this process on loopback.
 *
 * The live programs hang above and run after these. To them it is a connection to loopback, which is nobody's; that they
 * do not forget for it what these remembered is what the mark in `agents` is for (is_probe in bpf/connect.bpf.c).
 */
import { existsSync, mkdirSync, readdirSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { cgroupId, ownCgroup } from "../kernel/cgroup.ts";
import { KernelError } from "../kernel/error.ts";
import type { CgroupLink } from "../kernel/link.ts";
import { LoopbackListener, ProbeChild } from "../kernel/probe.ts";
import { taskIdentity } from "../kernel/process.ts";
import { formatAddress, parseAddress } from "../mesh/address.ts";
import { EndpointList } from "../mesh/endpoint-list.ts";
import { frontendKey } from "../mesh/frontend.ts";
import { type Changes, type Frontend, type Mesh, NO_EJECTION } from "../mesh/model.ts";
import type { Tables } from "./tables.ts";

const NAME = "kmesh-probe";
const PORT = 80;
/** In the values of `agents`, beside the start; bpf/connect.bpf.c has the same. */
const MARK = 1n << 63n;
const FAMILIES = {
  v4: { frontend: "192.0.2.1", listener: "127.0.0.1" },
  v6: { frontend: "2001:db8::1", listener: "::1" },
} as const;
type Family = keyof typeof FAMILIES;

export interface ProbeSubject {
  tables: Tables;
  /** Attaches the programs there by links without pins. */
  attachAt(cgroup: string): CgroupLink[];
  publish(mesh: Mesh, changes: Changes): void;
  mesh: Mesh;
}

/**
 * Proves the programs. Gives why it could not be tried, or undefined when they are right. Throws an Error that says what
 * went wrong; the tables have nothing of it any more in either case, unless that could not be written.
 */
export function probe(subject: ProbeSubject): string | undefined {
  removeDeadProbes();
  const own = ownCgroup();
  if (own === undefined) return "this process's cgroup is not below the cgroup2 mount";
  const cgroup = join(own, `${NAME}-${process.pid}`);
  try {
    mkdirSync(cgroup);
  } catch (error) {
    return `no cgroup can be made: ${error instanceof Error ? error.message : error}`;
  }
  const listeners = listen();
  let child: ProbeChild | undefined;
  try {
    try {
      child = ProbeChild.start(cgroup);
    } catch (error) {
      if (error instanceof KernelError) return `no process can be put into ${cgroup}: ${error.message}`;
      throw error;
    }
    connectAll(subject, cgroup, child, listeners);
    return undefined;
  } finally {
    child?.end();
    for (const listener of listeners.values()) listener.close();
    rmdirSync(cgroup);
  }
}

/** Removes what probes of agents that were killed have left. */
export function removeDeadProbes(): void {
  const own = ownCgroup();
  if (own === undefined) return;
  for (const name of readdirSync(own)) {
    const [, pid] = /^kmesh-probe-(\d+)$/.exec(name) ?? [];
    if (pid === undefined || (Number(pid) !== process.pid && existsSync(`/proc/${pid}`))) continue;
    try {
      rmdirSync(join(own, name));
    } catch {
      // Someone is in it, or the hierarchy is read-only: it is empty and does nothing.
    }
  }
}

function connectAll(
  { tables, attachAt, publish, mesh }: ProbeSubject,
  cgroup: string,
  child: ProbeChild,
  listeners: Map<Family, LoopbackListener>,
): void {
  const { agents, enrolled } = tables.maps;
  const task = taskIdentity(child.pid);
  if (!task) throw new Error("the probe's process is gone");
  const tgid = new Uint8Array(Uint32Array.of(task.tgid).buffer);
  const folder = bytesOf(cgroupId(cgroup));
  const { probing, changes } = withProbe(mesh, listeners);
  let links: CgroupLink[] = [];
  try {
    agents.update(tgid, bytesOf(task.startTicks | MARK));
    // The verdict of a cgroup that is this new is nowhere kept yet.
    enrolled.update(folder, bytesOf(1n));
    publish(probing, changes);
    links = attachAt(cgroup);
    for (const [family, listener] of listeners) connect(child, family, listener);
  } finally {
    // Its sockets end under the programs that counted them.
    child.end();
    for (const link of links) link.close();
    enrolled.delete(folder);
    agents.delete(tgid);
    publish(mesh, changes);
  }
}

function connect(child: ProbeChild, family: Family, listener: LoopbackListener): void {
  const { frontend } = FAMILIES[family];
  const address = parseAddress(frontend) ?? new Uint8Array(16);
  const outcome = child.connect(family, address, PORT, listener);
  const failure = outcome.ok
    ? outcome.port === PORT && Buffer.from(outcome.peer).equals(address)
      ? undefined
      : `getpeername shows ${formatAddress(outcome.peer)} port ${outcome.port}`
    : outcome.errno === 0
      ? `${outcome.stage}: other bytes arrived`
      : new KernelError(outcome.stage, outcome.errno, `port ${PORT}`).message;
  if (failure === undefined) return;
  throw new Error(
    `the new programs failed their probe, a connection to ${frontend}: ${failure}. ` +
      "No hook was changed, what governed before governs on",
  );
}

/** Where a family is off nothing can be probed, nor does anything use it. */
function listen(): Map<Family, LoopbackListener> {
  const listeners = new Map<Family, LoopbackListener>();
  for (const family of ["v4", "v6"] as const) {
    try {
      listeners.set(family, LoopbackListener.open(family));
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
    }
  }
  return listeners;
}

function withProbe(
  mesh: Mesh,
  listeners: Map<Family, LoopbackListener>,
): { probing: Mesh; changes: Changes } {
  const name = `${NAME}:${PORT}`;
  const frontends = [...listeners.keys()].map(
    (family): Frontend => ({
      match: { kind: "address", address: FAMILIES[family].frontend, port: PORT },
      protocol: "tcp",
      service: name,
      target: { kind: "cluster", cluster: NAME },
    }),
  );
  const endpoints = [...listeners].map(([family, { port }]) => ({
    address: FAMILIES[family].listener,
    port,
    weight: 1,
    healthy: true,
  }));
  const probing: Mesh = {
    ...mesh,
    services: new Map(mesh.services).set(name, { name, host: NAME, port: PORT, notes: [] }),
    frontends: new Map(mesh.frontends),
    clusters: new Map(mesh.clusters).set(NAME, {
      name: NAME,
      service: name,
      kind: "endpoints",
      reason: "none",
      balance: { policy: "round-robin" },
      localities: [
        { region: "", zone: "", subzone: "", priority: 0, weight: 0, endpoints: EndpointList.of(endpoints) },
      ],
      localityWeighted: false,
      overprovisioning: 140,
      panicThreshold: 0,
      maxConnections: 0,
      ejection: NO_EJECTION,
      pending: false,
    }),
  };
  for (const frontend of frontends) probing.frontends.set(frontendKey(frontend), frontend);
  return {
    probing,
    changes: {
      everything: false,
      services: new Set([name]),
      frontends: new Set(frontends.map(frontendKey)),
      splits: new Set(),
      clusters: new Set([NAME]),
    },
  };
}

function bytesOf(value: bigint): Uint8Array {
  return new Uint8Array(BigUint64Array.of(value).buffer);
}
