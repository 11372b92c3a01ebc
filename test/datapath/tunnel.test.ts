/** Endpoints that the tunnel reaches: apps are led to 127.a.b.c:15001, and nobody gets there by himself. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { explainPinned } from "../../src/datapath/inspect/explain.ts";
import { inspectPinned, summarizePinned } from "../../src/datapath/inspect/inspect.ts";
import { readPeer } from "../../src/datapath/mesh-tables/tunnel-targets.ts";
import { TunnelTargetReader } from "../../src/datapath/tunnel-reader.ts";
import { emptyMesh, type Mesh } from "../../src/mesh/model.ts";
import type { Transport } from "../../src/mesh/transport.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(120_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("tests of tunnel targets are skipped: they need root");

const ISTIO: Transport = {
  kind: "istio",
  sni: "outbound_.80_._.web.shop.svc.cluster.local",
  sans: [{ kind: "exact", value: "spiffe://cluster.local/ns/shop/sa/web" }],
};
const HBONE: Transport = { kind: "hbone", authority: "", port: 15008, sans: [] };

/** A peer by mTLS, one of IPv6 by HBONE, one in plaintext; `moved` has the first one at another address. */
function mesh(moved = false): Mesh {
  const mesh = emptyMesh();
  const web = [
    endpoint(moved ? "172.31.9.9:8080" : "172.31.1.1:8080", { transport: 1 }),
    endpoint("[fd00:31::1]:8080", { transport: 2 }),
    endpoint("172.31.1.2:8080"),
  ];
  addCluster(mesh, "web", web, { transports: [ISTIO, HBONE] });
  addCluster(mesh, "other", [endpoint("172.31.1.1:8080", { transport: 1 })], { transports: [ISTIO] });
  addFrontend(mesh, "10.96.7.1:80", { kind: "cluster", cluster: "web" }, "web");
  addFrontend(mesh, "10.96.7.2:80", { kind: "cluster", cluster: "other" }, "other");
  addFrontend(mesh, "[2001:2::7:2]:80", { kind: "cluster", cluster: "other" }, "other");
  return mesh;
}

describe.skipIf(!root)("tunnel targets", () => {
  let lab: DatapathLab;
  let reader: TunnelTargetReader;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.moveAgent(lab.namespace);
    reader = new TunnelTargetReader(lab.bpffs);
    await lab.serve({
      plain: "172.31.1.2:8080",
      ...Object.fromEntries([1, 2, 3, 4, 5, 6, 7].map((n) => [`t${n}`, `127.0.0.${n}:15001`])),
      beside: "127.0.0.2:15002",
    });
  });
  afterAll(async () => {
    reader?.close();
    await lab?.remove();
  });

  const numbers = () => {
    const { tables } = lab.datapath;
    const found = new Map<string, number>();
    for (let id = 0; id < tables.tunnelTargets.capacity; id++) {
      const peer = readPeer(tables, id);
      const cluster = peer && reader.read(id + 2)?.cluster;
      if (peer) found.set(`${cluster} ${peer.address}`, id + 2);
    }
    return found;
  };
  const refusals = () => summarizePinned(lab.bpffs).services[0]?.refused["tunnel-entry"] ?? 0;

  test("where no endpoint needs the tunnel, its port is everybody's", async () => {
    const plain = emptyMesh();
    addCluster(plain, "web", [endpoint("172.31.1.2:8080")]);
    addFrontend(plain, "10.96.7.1:80", { kind: "cluster", cluster: "web" }, "web");
    lab.publish(plain);
    expect(await lab.connect("127.0.0.2:15001")).toMatchObject({ by: { t2: 1 } });
    expect(reader.read(2)).toBeUndefined();
  });

  test("each pair of cluster and endpoint has its own target; plaintext goes directly", async () => {
    lab.publish(mesh());
    const at = numbers();
    expect([...at.keys()].sort()).toEqual(["other 172.31.1.1", "web 172.31.1.1", "web fd00:31::1"]);
    expect(new Set(at.values()).size).toBe(3);
    const web = at.get("web 172.31.1.1") ?? 0;
    expect(reader.read(web)).toEqual({
      number: web,
      peer: { address: "172.31.1.1", port: 8080 },
      transport: ISTIO,
      service: "web",
      cluster: "web",
    });
    const six = at.get("web fd00:31::1") ?? 0;
    expect(reader.read(six)).toMatchObject({ peer: { address: "fd00:31::1" }, transport: HBONE });
    const { made, by, peers } = await lab.connect("10.96.7.1:80", { count: 30 });
    expect({ made, by }).toEqual({ made: 30, by: { plain: 10, [`t${web}`]: 10, [`t${six}`]: 10 } });
    expect(peers).toEqual({ "10.96.7.1 80": 30 });
  });

  test("sockets of IPv6 come there v4-mapped, those of IPv6 alone are refused", async () => {
    const other = numbers().get("other 172.31.1.1");
    const six = await lab.connect("[2001:2::7:2]:80", { count: 3 });
    expect(six).toMatchObject({ by: { [`t${other}`]: 3 }, peers: { "2001:2::7:2 80": 3 } });
    expect(await lab.connect("10.96.7.2:80", { mapped: true })).toMatchObject({ by: { [`t${other}`]: 1 } });
    expect(await lab.connect("[2001:2::7:2]:80", { v6only: true })).toMatchObject({
      errors: { EHOSTUNREACH: 1 },
    });
    const bound = await lab.connect("10.96.7.2:80", { source: "172.31.1.2" });
    expect(bound).toMatchObject({ by: { [`t${other}`]: 1 } });
  });

  test("who connects to the tunnel by himself is refused and counted, enrolled or not", async () => {
    const before = refusals();
    const ways = [
      ["127.0.0.2:15001", {}],
      ["127.0.0.2:15001", { mapped: true }],
      ["127.200.3.4:15001", {}],
      // connect() to 0.0.0.0 goes to the address of 127/8 that the socket has.
      ["0.0.0.0:15001", { source: "127.0.0.2" }],
      ["0.0.0.0:15001", { mapped: true }],
    ] as const;
    for (const [at, more] of ways) {
      expect((await lab.connect(at, more)).errors).toEqual({ EPERM: 1 });
      expect((await lab.connect(at, more, null)).errors).toEqual({ EPERM: 1 });
    }
    expect(refusals()).toBe(before + 2 * ways.length);
    expect(summarizePinned(lab.bpffs).recent?.[0]).toMatchObject({
      outcome: "refused",
      reason: "tunnel-entry",
      port: 15001,
    });
    // Everything else of loopback is left alone.
    expect(await lab.connect("127.0.0.2:15002")).toMatchObject({ by: { beside: 1 } });
    expect((await lab.connect("[::1]:15001")).errors).toEqual({ ECONNREFUSED: 1 });
    // A socket that is bound to 127.0.0.2 by IPv6 and connects to :: comes to 127.0.0.1, which is no target.
    const any = await lab.connect("[::]:15001", { source: "::ffff:127.0.0.2", timeout: 0.3 });
    expect(any.by.t2).toBeUndefined();
    expect(reader.read(1)).toBeUndefined();
  });

  test("another agent with netns: all has its tunnel in another namespace: neither stands in the other's way", async () => {
    const other = await DatapathLab.create();
    try {
      await other.moveAgent(other.namespace);
      await other.serve({ elsewhere: "172.31.1.2:8080", t2: "127.0.0.2:15001", t3: "127.0.0.3:15001" });
      const theirs = emptyMesh();
      const endpoints = [endpoint("172.31.1.2:8080"), endpoint("172.31.1.3:8080", { transport: 1 })];
      addCluster(theirs, "web", endpoints, { transports: [ISTIO] });
      addFrontend(theirs, "10.96.7.9:80", { kind: "cluster", cluster: "web" }, "web");
      other.publish(theirs);
      const before = refusals();
      const { by, errors } = await other.connect("10.96.7.9:80", { count: 10 });
      expect({ by, errors }).toEqual({ by: { elsewhere: 5, t3: 5 }, errors: {} });
      // Each guards its own.
      expect((await other.connect("127.0.0.2:15001")).errors).toEqual({ EPERM: 1 });
      expect((await lab.connect("127.0.0.2:15001")).errors).toEqual({ EPERM: 1 });
      expect(refusals()).toBe(before + 1);
    } finally {
      await other.remove();
    }
  });

  test("an app of a namespace that the tunnel is not in is refused where its endpoint needs the tunnel", async () => {
    const elsewhere = await NetworkNamespace.create("el");
    try {
      await lab.moveAgent(elsewhere);
      const { by, errors } = await lab.connect("10.96.7.1:80", { count: 30 });
      expect({ by, errors }).toEqual({ by: { plain: 10 }, errors: { EHOSTUNREACH: 20 } });
      const { services } = summarizePinned(lab.bpffs);
      expect(services.map(({ refused }) => refused["other-netns"] ?? 0)).toContain(20);
      // The port is its own there.
      expect(await lab.connect("127.0.0.2:15001", {}, null)).toMatchObject({ by: { t2: 1 } });
    } finally {
      await lab.moveAgent(lab.namespace);
      await elsewhere.remove();
    }
  });

  test("inspect, explain and the list of failures name the peer", async () => {
    const web = inspectPinned(lab.bpffs).clusters.find(({ name }) => name === "web");
    expect(web?.endpoints.map(({ address }) => address).sort()).toEqual([
      "172.31.1.1",
      "172.31.1.2",
      "fd00:31::1",
    ]);
    const explained = explainPinned(lab.bpffs, "10.96.7.2", 80);
    expect(explained.verdict).toBe("redirect");
    expect(explained.clusters[0]?.endpoints[0]).toMatchObject({ address: "172.31.1.1", port: 8080 });
  });

  test("numbers stay over a restart, and nothing is written again", () => {
    const before = numbers();
    lab.reopen();
    expect(lab.publish(mesh())).toBe(0);
    expect(numbers()).toEqual(before);
  });

  test("a change touches what changed; the old target works on for those who are on their way", () => {
    const before = numbers();
    lab.publish(mesh(true));
    const after = numbers();
    expect(after.get("web 172.31.9.9")).toBeDefined();
    for (const [key, number] of before) expect(after.get(key)).toBe(number);
    lab.publish(mesh());
    for (const [key, number] of before) expect(numbers().get(key)).toBe(number);
  });

  test("another transport for the same peer is another target", () => {
    const before = numbers().get("other 172.31.1.1") ?? 0;
    const changed = mesh();
    addCluster(changed, "other", [endpoint("172.31.1.1:8080", { transport: 1 })], {
      transports: [{ ...ISTIO, sans: [] }],
    });
    lab.publish(changed);
    expect(reader.read(before)?.transport).toEqual(ISTIO);
    const [state] = explainPinned(lab.bpffs, "10.96.7.2", 80).clusters;
    expect(state?.endpoints).toHaveLength(1);
    const fresh = [...Array(12).keys()]
      .map((n) => reader.read(n))
      .filter((each) => each?.cluster === "other");
    expect(fresh.map((each) => each?.transport)).toContainEqual({ ...ISTIO, sans: [] });
  });

  test("a mesh without transports needs no tunnel: its endpoints are reached directly", async () => {
    const plain = emptyMesh();
    addCluster(plain, "web", [endpoint("172.31.1.2:8080")]);
    addFrontend(plain, "10.96.7.1:80", { kind: "cluster", cluster: "web" }, "web");
    lab.publish(plain);
    expect(await lab.connect("10.96.7.1:80", { count: 5 })).toMatchObject({ by: { plain: 5 } });
    // Connections that were led there may still live: the port stays closed.
    expect((await lab.connect("127.0.0.2:15001")).errors).toEqual({ EPERM: 1 });
  });
});
