/**
 * Two machines, each a network namespace with pinned tables and a `kmesh tunnel`, and no agent: an unmodified app on one
 * reaches a STRICT service on the other by sidecar mTLS and by HBONE.
 */

import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { callerKey, putCaller } from "../../src/datapath/callers.ts";
import { readableMap } from "../../src/datapath/generation/map-owners.ts";
import { readRefusals } from "../../src/inbound/refusals.ts";
import { readCertificate } from "../../src/istiod/identity/certificate.ts";
import { unpin } from "../../src/kernel/bpffs.ts";
import { taskIdentity } from "../../src/kernel/process.ts";
import { identityStore } from "../../src/machine/identity-store.ts";
import type { Inbound, Policy } from "../../src/mesh/inbound.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import type { Transport } from "../../src/mesh/transport.ts";
import { parseCarried } from "../../src/telemetry/carried.ts";
import { Counting } from "../../src/telemetry/counters/counting.ts";
import { readRows } from "../../src/telemetry/counters/rows.ts";
import { Labels } from "../../src/telemetry/labels.ts";
import { readTunnels, type TunnelStatus } from "../../src/tunnel/process/status-file.ts";
import { DatapathLab } from "../datapath/lab.ts";
import { addCluster, addFrontend, endpoint } from "../datapath/mesh.ts";
import { StrictPeer } from "../interop/strict-peer.ts";
import { TestMesh } from "../lab/mesh-member.ts";
import { NetworkNamespace, ownName } from "../lab/namespace.ts";
import { eventually, OwnedProcess, output, sleep } from "../lab/process.ts";

setDefaultTimeout(90_000);

const ROOT = join(import.meta.dir, "../..");
const HERE = "10.78.0.1";
const THERE = "10.78.0.2";
const HERE6 = "fd00:78::1";
const THERE6 = "fd00:78::2";
const PORT = 8080;
const mesh = new TestMesh();
const foreign = new TestMesh();
const folder = mkdtempSync(join(tmpdir(), "kmesh-tunnels-"));
const bpffs = `/sys/fs/bpf/${ownName("tn")}`;
let lab: DatapathLab;
let there: NetworkNamespace;
const started: OwnedProcess[] = [];

const sans = [{ kind: "exact" as const, value: mesh.id("web") }];
const istio: Transport = { kind: "istio", sni: "outbound_.80_._.web.shop.svc.cluster.local", sans };
const hbone: Transport = { kind: "hbone", authority: "", port: 15008, sans };

/** Starts the command on one of the machines; `round` tells its log from that of the one before. */
async function tunnel(
  account: string,
  netns: NetworkNamespace,
  pins: string,
  round = 1,
): Promise<OwnedProcess> {
  const state = join(folder, `${account}-state`);
  const { key, cert, ca } = mesh.issue(account);
  identityStore(state).save(readCertificate(key, cert, ca));
  const flags = ["--bpffs", pins, "--state-dir", state, "--run-dir", runDir(account)];
  const process_ = new OwnedProcess({
    name: account,
    log: join(folder, `${account}-${round}.log`),
    command: [process.execPath, join(ROOT, "src/main.ts"), "tunnel", ...flags],
    netns: netns.path,
  });
  started.push(process_);
  await eventually(`the tunnel of ${account} accepts`, () => process_.output().includes("accepts (pid"));
  return process_;
}

const runDir = (account: string) => join(folder, `${account}-run`);
const status = (account: string): TunnelStatus | undefined => readTunnels(runDir(account))[0];

/** With `mode` cut the policies govern established connections as well. */
async function govern(
  policies: Policy[],
  { mode = "leave", pins = bpffs, ports = [PORT, 10], netns = there.path } = {},
): Promise<void> {
  const set: Inbound = { ports, mtls: { default: "strict", ports: [] }, policies };
  const publisher = join(ROOT, "test/inbound/publisher.ts");
  // Whose connections the agent leaves alone.
  const env = { TUNNELS: String(status("web")?.pid ?? "") };
  await output([process.execPath, publisher, pins, mode, JSON.stringify(set)], { netns, env });
}

/** Connections of an app here to a service: which server answered, or the error. */
async function reach(vip: string, count = 10) {
  const { by, errors } = await lab.connect(`${vip}:80`, { count });
  return { by, errors };
}

beforeAll(async () => {
  lab = await DatapathLab.create();
  await lab.moveAgent(lab.namespace);
  there = await NetworkNamespace.create("tn");
  await lab.namespace.connect(there, [`${HERE}/24`, `${HERE6}/64`], [`${THERE}/24`, `${THERE6}/64`]);
  const app = new OwnedProcess({
    name: "app",
    log: join(folder, "app.log"),
    command: [process.execPath, join(ROOT, "test/interop/upstream.ts"), `web=${THERE}:${PORT}`],
    netns: there.path,
  });
  started.push(app);
  await eventually("the app listens", () => app.output().includes("ready"));
  const stranger = foreign.issue("web");
  started.push(
    await StrictPeer.start({
      ...{ folder, netns: there.path, at: { address: THERE, port: 11 } },
      identity: { key: stranger.key, chain: stranger.cert, roots: stranger.ca },
    }),
  );
  const model = emptyMesh();
  addCluster(model, "sidecar", [endpoint(`${THERE}:${PORT}`, { transport: 1 })], { transports: [istio] });
  addCluster(model, "ambient", [endpoint(`${THERE}:${PORT}`, { transport: 1 })], { transports: [hbone] });
  // Nobody listens at ports 9 and 10 there: TCP is refused, and CONNECT is answered with 503.
  const pair = (dead: number) => [PORT, dead].map((port) => endpoint(`${THERE}:${port}`, { transport: 1 }));
  const ejection = { after: 3, base: 60_000, longest: 60_000, percent: 50, enforcing: 100 };
  addCluster(model, "half", pair(9), { transports: [istio], ejection });
  addCluster(model, "half-hbone", pair(10), { transports: [hbone], ejection });
  // At port 11 there is a member of another mesh: the handshake fails.
  addCluster(model, "half-known", pair(11), { transports: [istio], ejection });
  addFrontend(model, "10.96.8.5:80", { kind: "cluster", cluster: "half-known" }, "half-known");
  addFrontend(model, "10.96.8.3:80", { kind: "cluster", cluster: "half" }, "half");
  addFrontend(model, "10.96.8.4:80", { kind: "cluster", cluster: "half-hbone" }, "half-hbone");
  addFrontend(model, "10.96.8.1:80", { kind: "cluster", cluster: "sidecar" }, "sidecar");
  addFrontend(model, "10.96.8.2:80", { kind: "cluster", cluster: "ambient" }, "ambient");
  lab.publish(model);
  await govern([]);
  await tunnel("client", lab.namespace, lab.bpffs);
});

afterAll(async () => {
  for (const process_ of started) await process_.stop("SIGKILL");
  unpin(bpffs);
  await lab?.remove();
  await there?.remove();
  mesh.close();
  foreign.close();
  rmSync(folder, { recursive: true, force: true });
});

const kinds = (errors: Record<string, number>) => Object.keys(errors);

test("while no tunnel runs there, a STRICT port refuses everybody", async () => {
  const plain = await lab.connect(`${THERE}:${PORT}`, {}, null);
  expect(kinds(plain.errors)).toEqual(["ECONNREFUSED"]);
  expect((await reach("10.96.8.1", 3)).by).toEqual({});
});

test("an app reaches it by sidecar mTLS and by HBONE; plaintext from outside does not", async () => {
  await tunnel("web", there, bpffs);
  await eventually("connections are steered", async () => (await reach("10.96.8.1", 1)).by.web === 1);
  expect(await reach("10.96.8.1")).toEqual({ by: { web: 10 }, errors: {} });
  expect(await reach("10.96.8.2")).toEqual({ by: { web: 10 }, errors: {} });
  const plain = await lab.connect(`${THERE}:${PORT}`, { timeout: 5 }, null);
  expect(plain.by).toEqual({});
  // Written once a second.
  await eventually("the status says so", () => {
    const ways = status("web")?.ways;
    return (
      ways?.hbone.total === 10 && (ways.inbound.failures.plaintext ?? 0) >= 1 && ways.inbound.total >= 11
    );
  });
  expect(Object.keys(status("web")?.identities ?? {})).toEqual([mesh.id("client")]);
});

test("policies decide by the identity, as they are pinned now", async () => {
  const principal = `cluster.local/ns/shop/sa/client`;
  const rules = [
    {
      name: "rule 1",
      when: { kind: "principal" as const, match: [{ kind: "exact" as const, value: principal }] },
    },
  ];
  await govern([{ name: "shop/no", action: "deny", rules }]);
  for (const vip of ["10.96.8.1", "10.96.8.2"]) expect((await reach(vip, 2)).by).toEqual({});
  await eventually("refusals are counted", () => status("web")?.ways.hbone.failures.denied === 2);
  // By policy, where the kernel's own refusals are.
  const { refusals } = readRefusals(bpffs) ?? {};
  expect(refusals?.find(({ by }) => by === "shop/no")).toEqual({ by: "shop/no", count: 4 });
  await govern([{ name: "shop/yes", action: "allow", rules }]);
  for (const vip of ["10.96.8.1", "10.96.8.2"]) expect((await reach(vip, 2)).by).toEqual({ web: 2 });
});

test("a connect that fails is tried on the other endpoint, and failures in a row eject the endpoint, without an agent", async () => {
  for (const [vip, name] of [
    ["10.96.8.3", "half"],
    ["10.96.8.4", "half-hbone"],
    ["10.96.8.5", "half-known"],
  ] as const) {
    const before = status("client")?.retried ?? 0;
    // Every second connection is led to the dead one, until three of them have failed.
    expect(await reach(vip, 20)).toEqual({ by: { web: 20 }, errors: {} });
    const ejected = () =>
      lab.datapath
        .inspect()
        .clusters.filter((cluster) => cluster.name === name)
        .flatMap(({ endpoints }) => endpoints.filter((each) => each.ejectedFor > 0));
    expect(ejected()).toMatchObject([{ failed: 3, failures: 0, live: 0 }]);
    await eventually("they are counted", () => (status("client")?.retried ?? 0) === before + 3);
  }
  expect(status("client")?.services).toMatchObject({
    half: { "connect-refused": 3 },
    "half-hbone": { "peer-unavailable": 3 },
    "half-known": { "unknown-ca": 3 },
  });
});

test("established connections are cut when a policy denies their identity, with enforce-established alone", async () => {
  const when = { kind: "namespace" as const, match: [{ kind: "exact" as const, value: "shop" }] };
  const deny: Policy[] = [{ name: "shop/shut", action: "deny", rules: [{ name: "rule 1", when }] }];
  await govern([], { mode: "cut" });
  await lab.keep("10.96.8.1:80", 2);
  await lab.keep("10.96.8.2:80", 3);
  const open = (way: "inbound" | "hbone") => status("web")?.ways[way].open;
  const carried = () => [open("inbound"), open("hbone")].join();
  await eventually("five are carried", () => carried() === "2,3");
  const before = status("web")?.ways.hbone.failures.denied ?? 0;
  await govern(deny);
  await sleep(1_200);
  expect(carried()).toBe("2,3");
  // The agent's own look leaves the tunnel's connections alone.
  await govern(deny, { mode: "cut" });
  await eventually("all are cut", () => carried() === "0,0");
  expect(status("web")?.ways.hbone.failures.denied).toBe(before + 3);
  const { refusals } = readRefusals(bpffs) ?? {};
  expect(refusals?.find(({ by }) => by === "shop/shut")).toEqual({ by: "shop/shut", count: 5 });
  await govern([]);
});

test("apps see their callers, and the kernel counts for them, by sidecar mTLS and by HBONE, in both families", async () => {
  const app = new OwnedProcess({
    name: "peers",
    log: join(folder, "peers.log"),
    command: ["python3", join(import.meta.dir, "peers.py"), "0.0.0.0:18081", "[::]:18082/late"],
    netns: lab.namespace.path,
    cgroup: lab.cgroup,
  });
  started.push(app);
  await eventually("the app listens", () => app.output().includes("ready"));
  await govern([], { pins: lab.bpffs, ports: [18081, 18082], netns: lab.namespace.path });
  const store = mesh.store("web").folder;
  const dial = async (address: string, port: number, transport: Transport) => {
    const target = JSON.stringify({ peer: { address, port }, transport });
    const command = [process.execPath, join(import.meta.dir, "dial.ts"), store, target];
    const { answer, port: own } = JSON.parse(await output(command, { netns: there.path }));
    const [accepted, acceptedPort, peer, peerPort] = String(answer).split(" ");
    expect([peer, peerPort]).toEqual([accepted, acceptedPort]);
    return { from: accepted, port: acceptedPort, own };
  };
  const own = [{ kind: "exact" as const, value: mesh.id("client") }];
  await eventually("connections are steered", async () => {
    const seen = await dial(HERE, 18081, { ...istio, sans: own }).catch(() => undefined);
    return seen?.from === THERE;
  });
  const { tables } = lab.datapath;
  const counting = new Counting(tables.maps.traffic, tables.maps.served_ports);
  counting.serve([18081, 18082]);
  for (const [address, port, from] of [
    [HERE, 18081, THERE],
    [HERE, 18082, `::ffff:${THERE}`],
    [HERE6, 18082, THERE6],
  ] as const) {
    // The port is the caller's own where the connection is the caller's alone.
    const sidecar = await dial(address, port, { ...istio, sans: own });
    expect(sidecar).toEqual({ from, port: sidecar.own, own: sidecar.own });
    expect((await dial(address, port, { ...hbone, sans: own })).from).toBe(from);
  }
  await eventually("they are counted", () => (status("client")?.callers.shown ?? 0) >= 6);
  expect(status("client")?.callers.hidden).toBe(0);
  // Nothing is left of connections that have ended.
  using callers = readableMap(lab.bpffs, "callers");
  await eventually("they are forgotten", () => callers.entries().count === 0);
  // A connection of the machine's own shows what it is.
  const script = `import socket;s=socket.create_connection(("${HERE}",18081));print(s.recv(99).decode())`;
  expect(await output(["python3", "-c", script], { netns: lab.namespace.path })).toStartWith(`${HERE} `);
  // Its sockets outlive the tunnel's ends, and so do the entries.
  expect(tables.maps.carried.entries().count).toBe(1);
  await app.stop("SIGKILL");
  await eventually("all is counted", () => tables.maps.carried.entries().count === 0);
  const names = new Labels(tables, undefined, false);
  const rows = readRows(tables.maps.caller_rows).map(
    ({ key: { port, remote }, counters: { opened, ends } }) => {
      const carried = parseCarried(names.caller(remote));
      return [port, names.callerAddress(remote), carried?.by, carried?.principal, opened, ends[0]].join(" ");
    },
  );
  const id = mesh.id("web");
  expect(rows.sort()).toEqual(
    [
      ...[`18081 ${HERE}   1 1`, `18081 ${THERE} hbone ${id} 1 1`, `18081 ${THERE} istio ${id} 1 1`],
      ...[`18082 ${THERE} hbone ${id} 1 1`, `18082 ${THERE} istio ${id} 1 1`],
      ...[`18082 ${THERE6} hbone ${id} 1 1`, `18082 ${THERE6} istio ${id} 1 1`],
    ].sort(),
  );
  counting.serve([]);
  counting.close();
});

test("both tunnels are handed over and none of the connects fails", async () => {
  const load = await Promise.all([
    lab.connect("10.96.8.1:80", { count: 150 }),
    lab.connect("10.96.8.2:80", { count: 150 }),
    (async () => {
      for (const account of ["client", "web"]) {
        const before = status(account)?.pid ?? 0;
        process.kill(before, "SIGHUP");
        await eventually(`the tunnel of ${account} has a successor`, () => {
          const now = status(account);
          return now !== undefined && now.pid !== before && !now.draining;
        });
      }
    })(),
  ]);
  for (const { by, errors } of load.slice(0, 2) as { by: object; errors: object }[])
    expect({ by, errors }).toEqual({ by: { web: 150 }, errors: {} });
  // Orphans are nobody's to stop.
  for (const account of ["client", "web"]) process.kill(status(account)?.pid ?? 0, "SIGKILL");
});

test("after a crash of both, plaintext stays out, and the next ones serve at once", async () => {
  const plain = await lab.connect(`${THERE}:${PORT}`, {}, null);
  expect(plain.by).toEqual({});
  // A caller that the crash left: its connection is gone, and the next tunnel removes it. One of a process that lives stays.
  using callers = readableMap(lab.bpffs, "callers");
  const left = callerKey({ address: HERE, port: 40_001 }, 18081);
  const living = callerKey({ address: HERE, port: 40_002 }, 18081);
  const caller = { address: THERE, port: 1 };
  putCaller(callers, left, caller, { tgid: process.pid, startTicks: 1n });
  putCaller(callers, living, caller, taskIdentity() ?? { tgid: 0, startTicks: 0n });
  await tunnel("web", there, bpffs, 2);
  await tunnel("client", lab.namespace, lab.bpffs, 2);
  await eventually("what the crash left is gone", () => callers.entries().count === 1);
  expect(callers.delete(living)).toBe(true);
  expect((await reach("10.96.8.2", 5)).by).toEqual({ web: 5 });
  expect((await reach("10.96.8.1", 5)).by).toEqual({ web: 5 });
});
