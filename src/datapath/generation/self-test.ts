/**
 * Tests programs before they replace others: makes a real connection through them, in a separate cgroup.
 *
 * The same programs are loaded a second time over private maps that nothing pins. So the test leaves nothing behind, also
 * when a process dies, and other programs may govern meanwhile, even over the same tables. Those are attached above the
 * cgroup, and the test's process is exempt from them.
 */

import { existsSync, mkdirSync, readdirSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { codeOf, reasonOf } from "../../errors/reason.ts";
import { cgroup2Root, cgroupId, ownCgroup } from "../../kernel/cgroup.ts";
import { ERRNO, KernelError } from "../../kernel/error.ts";
import { CgroupLink, type Hook } from "../../kernel/link.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import type { BpfProgram } from "../../kernel/object.ts";
import type { TaskIdentity } from "../../kernel/process.ts";
import { type Family, LoopbackListener, SelfTestChild } from "../../kernel/self-test-child.ts";
import { formatAddress, parseAddress } from "../../mesh/address.ts";
import { EndpointList } from "../../mesh/endpoint-list.ts";
import { frontendKey } from "../../mesh/frontend.ts";
import { emptyMesh, type Frontend, type Mesh, NO_EJECTION, type Target } from "../../mesh/model.ts";
import { faultPoint } from "../../runtime/fault.ts";
import { Publisher } from "../mesh-tables/publisher.ts";
import type { ChunkedTable } from "../tables/chunked-table.ts";
import { enrolCgroup, exempt, governNetns, unexempt } from "../tables/enrolment.ts";
import * as layout from "../tables/layout.gen.ts";
import { type MapName, type Maps, Tables } from "../tables/tables.ts";
import { totalsOf } from "../tables/totals.ts";
import { readableMap } from "./map-owners.ts";
import { type Code, loadPrograms } from "./programs.ts";

const NAME = "kmesh-probe";
const PORT = 80;
/** By family: the address to redirect and the one to refuse (both documentation addresses), and the expected endpoint. */
const FAMILIES = {
  v4: { asked: "192.0.2.1", refused: "192.0.2.2", loopback: "127.0.0.1" },
  v6: { asked: "2001:db8::1", refused: "2001:db8::2", loopback: "::1" },
} as const;
/** Longest wait for a cgroup to become free after its last process ended, milliseconds. */
const RELEASE_PATIENCE = 200;

/** The programs do not work as required. No hook was changed. */
export class SelfTestFailed extends Error {
  override readonly name = "SelfTestFailed";
  /** Pause before the next test, milliseconds. */
  retryAfter = 0;
}

/** The result: the programs work, or could not be tested. */
export interface SelfTestResult {
  /** Tags of the programs. Equal tags mean equal instructions, independent of their maps. */
  tags: ReadonlyMap<Hook, string>;
  /** The reason why no connection could be made. The programs did load. */
  untried?: string;
  milliseconds: number;
}

/**
 * Tests programs while others, pinned below `bpffs`, govern. Leaves nothing behind. Throws SelfTestFailed with the reason.
 */
export function selfTest(bpffs: string, code: Code, netns: "own" | "all"): SelfTestResult {
  const began = performance.now();
  const maps = new Map<MapName, BpfMap>();
  let programs = new Map<Hook, BpfProgram>();
  let tables: Tables | undefined;
  try {
    programs = loadPrograms(code, maps);
    tables = new Tables(Object.fromEntries(maps) as Maps);
    const untried = probe(bpffs, programs, tables, netns);
    const tags = new Map([...programs].map(([hook, program]) => [hook, program.info.tag]));
    const milliseconds = performance.now() - began;
    return untried === undefined ? { tags, milliseconds } : { tags, milliseconds, untried };
  } catch (error) {
    throw new SelfTestFailed(
      `the new programs failed their probe: ${reasonOf(error)}. ` +
        "They were attached nowhere: what governed before governs on",
      { cause: error },
    );
  } finally {
    for (const program of programs.values()) program.close();
    if (tables) tables.discard();
    else for (const map of maps.values()) map.close();
  }
}

/** Removes the cgroups of tests whose agents were killed. */
export function removeDeadSelfTests(): void {
  for (const parent of parents()) {
    for (const name of readdirSync(parent)) {
      const [, pid] = /^kmesh-probe-(\d+)$/.exec(name) ?? [];
      if (pid === undefined || existsSync(`/proc/${pid}`)) continue;
      try {
        rmdirSync(join(parent, name));
      } catch {
        // It is in use, or can't be removed. It has no effect.
      }
    }
  }
}

/** Returns the reason why a test is not possible here. Throws when the test fails. */
function probe(
  bpffs: string,
  programs: ReadonlyMap<Hook, BpfProgram>,
  tables: Tables,
  netns: "own" | "all",
): string | undefined {
  const links: CgroupLink[] = [];
  let room: Room | undefined;
  let exempted: TaskIdentity | undefined;
  const agents = readableMap(bpffs, "agents");
  const listeners = listen();
  try {
    room = Room.make();
    if (room.child === undefined) return room.trouble;
    const { child, cgroup } = room;
    exempted = exempt(agents, child.pid);
    const families = answering(child, listeners);
    if (families.size === 0)
      return "connections on loopback do not arrive here, with or without these programs";
    fill(tables, families, cgroup, netns);
    for (const [hook, program] of programs) links.push(CgroupLink.attach(program, cgroup, hook));
    for (const [family, listener] of families) {
      checkRedirect(tables, child, family, listener);
      checkRefusal(tables, child, family, listener);
    }
    return undefined;
  } catch (error) {
    // A foreign program at or above the cgroup does not allow others at its hook. The programs may still work.
    if (error instanceof KernelError && error.call === "bpf_link_create" && error.errno === ERRNO.EPERM)
      return error.message;
    throw error;
  } finally {
    if (exempted) unexempt(agents, exempted);
    agents.close();
    // Its sockets end before the links, while the programs that counted them are attached.
    room?.child?.end();
    for (const link of links) link.close();
    for (const listener of listeners.values()) listener.close();
    room?.remove();
    faultPoint("probe.removed");
  }
}

/** A cgroup with a process in it, or the reason why there is none. */
class Room {
  readonly cgroup: string;
  readonly child: SelfTestChild | undefined;
  readonly trouble: string;

  private constructor(cgroup: string, child: SelfTestChild | undefined, trouble: string) {
    this.cgroup = cgroup;
    this.child = child;
    this.trouble = trouble;
  }

  /** The parent cgroup: this process's own, or the root if that is not writable or not visible. */
  static make(): Room {
    const reasons: string[] = [];
    for (const parent of parents()) {
      const cgroup = join(parent, `${NAME}-${process.pid}`);
      try {
        mkdirSync(cgroup);
      } catch (error) {
        reasons.push(reasonOf(error));
        continue;
      }
      faultPoint("probe.cgroup");
      try {
        return new Room(cgroup, SelfTestChild.start(cgroup), "");
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        reasons.push(error.message);
        removeCgroup(cgroup);
      }
    }
    return new Room("", undefined, `no cgroup can be made for it (${reasons.join("; ")})`);
  }

  remove(): void {
    if (this.child) removeCgroup(this.cgroup);
  }
}

function parents(): string[] {
  const own = ownCgroup();
  const root = cgroup2Root();
  return own === undefined || own === root ? [root] : [own, root];
}

function removeCgroup(path: string): void {
  const until = performance.now() + RELEASE_PATIENCE;
  for (;;) {
    try {
      rmdirSync(path);
      return;
    } catch (error) {
      const busy = codeOf(error) === "EBUSY";
      // It is empty and has no effect. The next start removes it.
      if (!busy || performance.now() > until) return;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

/** Whether a family is enabled. A disabled family needs no test. */
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

/** The families that work without the programs. A firewall may block one. */
function answering(
  child: SelfTestChild,
  listeners: ReadonlyMap<Family, LoopbackListener>,
): Map<Family, LoopbackListener> {
  const direct = (family: Family, listener: LoopbackListener) =>
    child.connect(family, bytesOf(FAMILIES[family].loopback), listener.port, listener).ok;
  return new Map([...listeners].filter(([family, listener]) => direct(family, listener)));
}

function fill(
  tables: Tables,
  families: ReadonlyMap<Family, LoopbackListener>,
  cgroup: string,
  netns: "own" | "all",
): void {
  enrolCgroup(tables, cgroupId(cgroup));
  governNetns(tables, netns);
  const publisher = new Publisher(tables, () => "none", raise);
  publisher.publish(selfTestMesh(families), { everything: true });
  publisher.abandon();
}

/** Releases nothing: these tables are filled only once. */
function raise(error: unknown): never {
  throw error;
}

function checkRedirect(
  tables: Tables,
  child: SelfTestChild,
  family: Family,
  listener: LoopbackListener,
): void {
  const { asked, loopback } = FAMILIES[family];
  const way = `a connection to ${asked} port ${PORT}, which they were to lead to ${loopback}`;
  const before = totalsOf(tables.serviceCounts).connections;
  const outcome = child.connect(family, bytesOf(asked), PORT, listener);
  faultPoint("probe.connected");
  if (!outcome.ok) throw new Error(`${way}: ${outcome.stage}: ${outcome.reason}`);
  const seen = `${formatAddress(outcome.peer)} port ${outcome.port}`;
  if (seen !== `${asked} port ${PORT}`) throw new Error(`${way}: getpeername shows ${seen}`);
  const counted = totalsOf(tables.serviceCounts).connections - before;
  if (counted !== 1) throw new Error(`${way}: it was counted ${counted} times`);
  const open = live(tables);
  if (open !== 1) throw new Error(`${way}: ${open} live connections are counted, not 1`);
  child.disconnect();
  const left = live(tables);
  if (left !== 0) throw new Error(`${way}: ${left} live connections are counted after its end`);
}

function checkRefusal(
  tables: Tables,
  child: SelfTestChild,
  family: Family,
  listener: LoopbackListener,
): void {
  const { refused } = FAMILIES[family];
  const way = `a connection to ${refused} port ${PORT}, which they were to refuse`;
  const before = totalsOf(tables.serviceCounts).refused;
  const outcome = child.connect(family, bytesOf(refused), PORT, listener);
  if (outcome.ok) throw new Error(`${way}: it was made`);
  const counted = totalsOf(tables.serviceCounts).refused - before;
  if (counted !== 1) throw new Error(`${way}: ${outcome.reason}, and ${counted} refusals are counted`);
}

/** The sum over all endpoints, which must equal the sum over all clusters. */
function live(tables: Tables): number {
  const sum = (table: ChunkedTable, offset: number) => {
    let all = 0;
    for (let id = 0; id < table.capacity; id++) all += table.count(id, offset);
    return all;
  };
  const endpoints = sum(tables.endpointLoads, layout.endpoint_load.fields.live.offset);
  const clusters = sum(tables.clusterLoads, layout.cluster_load.fields.live.offset);
  return endpoints === clusters ? endpoints : Number.NaN;
}

function selfTestMesh(families: ReadonlyMap<Family, LoopbackListener>): Mesh {
  const service = `${NAME}:${PORT}`;
  const frontend = (address: string, target: Target): Frontend => ({
    match: { kind: "address", address, port: PORT },
    protocol: "tcp",
    service,
    target,
  });
  const frontends = [...families.keys()].flatMap((family) => [
    frontend(FAMILIES[family].asked, { kind: "cluster", cluster: NAME }),
    frontend(FAMILIES[family].refused, { kind: "refuse", reason: "policy" }),
  ]);
  const endpoints = [...families].map(([family, { port }]) => ({
    address: FAMILIES[family].loopback,
    port,
    weight: 1,
    healthy: true,
  }));
  return {
    ...emptyMesh(),
    services: new Map([[service, { name: service, host: NAME, port: PORT, notes: [] }]]),
    frontends: new Map(frontends.map((each) => [frontendKey(each), each])),
    clusters: new Map([
      [
        NAME,
        {
          name: NAME,
          service,
          kind: "endpoints",
          reason: "none",
          port: 0,
          balance: { policy: "round-robin" },
          localities: [
            {
              region: "",
              zone: "",
              subzone: "",
              priority: 0,
              weight: 0,
              endpoints: EndpointList.of(endpoints),
            },
          ],
          localityWeighted: false,
          overprovisioning: 140,
          panicThreshold: 0,
          maxConnections: 0,
          ejection: NO_EJECTION,
          transports: [],
          pending: false,
        },
      ],
    ]),
  };
}

function bytesOf(address: string): Uint8Array {
  return parseAddress(address) ?? new Uint8Array(16);
}
