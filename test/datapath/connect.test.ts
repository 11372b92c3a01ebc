/** Real connections of a real app through the tables. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { HOOK_ORDER, linkPin } from "../../src/datapath/generation/pins.ts";
import { explainPinned } from "../../src/datapath/inspect/explain.ts";
import { openPinned } from "../../src/datapath/inspect/inspect.ts";
import { exactKey } from "../../src/datapath/tables/frontend-key.ts";
import { CgroupLink } from "../../src/kernel/link.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { EXEMPT } from "../../src/mesh/exempt.ts";
import { emptyDelta, emptyMesh, type Mesh } from "../../src/mesh/model.ts";
import { eventually } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint, locality } from "./mesh.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("data path tests are skipped: they need root");

const A = "172.31.1.1:8080";
const B = "172.31.1.2:8080";
const C6 = "[fd00:31::3]:8080";

describe.skipIf(!root)("connections through the tables", () => {
  let lab: DatapathLab;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({ a: A, b: B, c6: C6 });
  });
  afterAll(async () => {
    await lab?.remove();
  });

  /** One cluster "c" behind 10.96.0.1:80. */
  function meshOf(build: (mesh: Mesh) => void): Mesh {
    const mesh = emptyMesh();
    addFrontend(mesh, "10.96.0.1:80", { kind: "cluster", cluster: "c" });
    build(mesh);
    return mesh;
  }

  test("an exact frontend leads to its endpoint, and getpeername shows what the app asked for", async () => {
    lab.publish(meshOf((mesh) => addCluster(mesh, "c", [endpoint(A)])));
    const tally = await lab.connect("10.96.0.1:80", { count: 3 });
    expect(tally).toMatchObject({ made: 3, by: { a: 3 }, peers: { "10.96.0.1 80": 3 }, errors: {} });
  });

  test("an app outside the enrolled cgroup is left alone", async () => {
    const tally = await lab.connect("10.96.0.1:80", {}, null);
    expect(tally.made).toBe(0);
    expect(tally.errors).toEqual({ ENETUNREACH: 1 });
  });

  test("a v4-mapped socket is led to the IPv4 endpoint and sees its mapped service address", async () => {
    const tally = await lab.connect("10.96.0.1:80", { mapped: true });
    expect(tally).toMatchObject({ made: 1, by: { a: 1 }, peers: { "::ffff:10.96.0.1 80": 1 } });
  });

  test("an IPv6 socket reaches an IPv6 endpoint, and an IPv4 one unless it is V6ONLY", async () => {
    const mesh = emptyMesh();
    addFrontend(mesh, "[2001:2::1]:80", { kind: "cluster", cluster: "six" });
    addFrontend(mesh, "[2001:2::2]:80", { kind: "cluster", cluster: "four" });
    addCluster(mesh, "six", [endpoint(C6)]);
    addCluster(mesh, "four", [endpoint(A)]);
    lab.publish(mesh);
    expect(await lab.connect("[2001:2::1]:80")).toMatchObject({
      by: { c6: 1 },
      peers: { "2001:2::1 80": 1 },
    });
    expect(await lab.connect("[2001:2::2]:80")).toMatchObject({ by: { a: 1 }, peers: { "2001:2::2 80": 1 } });
    expect((await lab.connect("[2001:2::2]:80", { v6only: true })).errors).toEqual({ EHOSTUNREACH: 1 });
  });

  test("an IPv4 socket is refused by an IPv6-only cluster, with a reason of its own", async () => {
    lab.publish(meshOf((mesh) => addCluster(mesh, "c", [endpoint(C6)])));
    const before = counters("svc:80").refused["no-family"] ?? 0;
    expect((await lab.connect("10.96.0.1:80")).errors).toEqual({ EHOSTUNREACH: 1 });
    expect(counters("svc:80").refused["no-family"]).toBe(before + 1);
  });

  test("prefixes match the longest first, then the port alone, then the mesh's default", async () => {
    const mesh = emptyMesh();
    for (const [name, at] of [
      ["a", A],
      ["b", B],
    ] as const)
      addCluster(mesh, name, [endpoint(at)]);
    addFrontend(
      mesh,
      { kind: "prefix", address: "10.97.0.0", length: 16, port: 80 },
      { kind: "cluster", cluster: "a" },
    );
    addFrontend(
      mesh,
      { kind: "prefix", address: "10.97.5.0", length: 24, port: 80 },
      { kind: "cluster", cluster: "b" },
    );
    addFrontend(mesh, { kind: "port", port: 81 }, { kind: "cluster", cluster: "b" });
    addFrontend(
      mesh,
      { kind: "prefix", address: "fd00:97::", length: 32, port: 80 },
      { kind: "cluster", cluster: "a" },
    );
    mesh.fallback = { kind: "refuse", reason: "not-in-registry" };
    lab.publish(mesh);
    expect((await lab.connect("10.97.1.1:80")).by).toEqual({ a: 1 });
    expect((await lab.connect("10.97.5.1:80")).by).toEqual({ b: 1 });
    expect((await lab.connect("10.99.9.9:81")).by).toEqual({ b: 1 });
    expect((await lab.connect("[fd00:97::1]:80")).by).toEqual({ a: 1 });
    expect((await lab.connect("[fd00:98::1]:81")).by).toEqual({ b: 1 });
    expect((await lab.connect("10.97.1.1:82")).errors).toEqual({ EPERM: 1 });
    expect(counters("").refused["not-in-registry"]).toBe(1);
    mesh.frontends.delete("tcp 10.97.5.0/24:80");
    lab.publish(mesh);
    expect((await lab.connect("10.97.5.1:80")).by).toEqual({ a: 1 });
  });

  test("a block takes addresses of its own family only, and the port alone takes both", async () => {
    const mesh = emptyMesh();
    addCluster(mesh, "a", [endpoint(A)]);
    addCluster(mesh, "b", [endpoint(B)]);
    const everyV6 = { kind: "prefix", address: "::", length: 0 } as const;
    const everyV4 = { kind: "prefix", address: "0.0.0.0", length: 0 } as const;
    const to = (cluster: string) => ({ kind: "cluster", cluster }) as const;
    addFrontend(mesh, { ...everyV6, port: 80 }, to("a"));
    addFrontend(mesh, { ...everyV4, port: 81 }, to("a"));
    addFrontend(mesh, { ...everyV6, port: 82 }, to("a"));
    addFrontend(mesh, { kind: "port", port: 82 }, to("b"));
    addFrontend(mesh, { ...everyV6, length: 64, port: 83 }, to("a"));
    mesh.fallback = { kind: "refuse", reason: "not-in-registry" };
    lab.publish(mesh);
    expect((await lab.connect("[fd00:98::1]:80")).by).toEqual({ a: 1 });
    expect((await lab.connect("10.97.1.1:80")).errors).toEqual({ EPERM: 1 });
    expect((await lab.connect("10.97.1.1:80", { mapped: true })).errors).toEqual({ EPERM: 1 });
    expect((await lab.connect("10.97.1.1:81")).by).toEqual({ a: 1 });
    expect((await lab.connect("10.97.1.1:81", { mapped: true })).by).toEqual({ a: 1 });
    expect((await lab.connect("[fd00:98::1]:81")).errors).toEqual({ EPERM: 1 });
    expect((await lab.connect("[fd00:98::1]:82")).by).toEqual({ a: 1 });
    expect((await lab.connect("10.97.1.1:82")).by).toEqual({ b: 1 });
    expect((await lab.connect("[::5:1]:83")).by).toEqual({ a: 1 });
    expect((await lab.connect("10.97.1.1:83")).errors).toEqual({ EPERM: 1 });
    const listed = lab.datapath.inspect().frontends.map(({ match }) => match);
    expect(listed.sort()).toEqual(["*:82", "0.0.0.0/0:81", "[::/0]:80", "[::/0]:82", "[::/64]:83"]);
    expect(explainPinned(lab.bpffs, "10.97.1.1", 83).why[0]).toContain("no frontend matches");
    lab.reopen({ excludes: [{ address: "::", length: 0, port: 0 }] });
    expect((await lab.connect("10.97.1.1:81")).by).toEqual({ a: 1 });
    expect((await lab.connect("[fd00:98::1]:80")).made).toBe(0);
    lab.reopen();
  });

  test("the default may be a cluster", async () => {
    const mesh = emptyMesh();
    addCluster(mesh, "egress", [endpoint(B)]);
    mesh.fallback = { kind: "cluster", cluster: "egress" };
    lab.publish(mesh);
    expect((await lab.connect("198.51.100.1:443")).by).toEqual({ b: 1 });
    expect((await lab.connect("127.0.0.1:9")).errors).toEqual({ ECONNREFUSED: 1 });
  });

  test("no endpoint, a missing cluster, TLS and policy are refused, each under its reason", async () => {
    const mesh = emptyMesh();
    addCluster(mesh, "empty", []);
    addCluster(mesh, "tls", [], { kind: "refuse", reason: "tls-required" });
    addFrontend(mesh, "10.96.1.1:80", { kind: "cluster", cluster: "empty" }, "empty:80");
    addFrontend(mesh, "10.96.1.2:80", { kind: "cluster", cluster: "nowhere" }, "missing:80");
    addFrontend(mesh, "10.96.1.3:80", { kind: "cluster", cluster: "tls" }, "tls:80");
    addFrontend(mesh, "10.96.1.4:80", { kind: "refuse", reason: "policy" }, "policy:80");
    lab.publish(mesh);
    expect((await lab.connect("10.96.1.1:80")).errors).toEqual({ ECONNREFUSED: 1 });
    expect((await lab.connect("10.96.1.2:80")).errors).toEqual({ ECONNREFUSED: 1 });
    expect((await lab.connect("10.96.1.3:80")).errors).toEqual({ EPERM: 1 });
    expect((await lab.connect("10.96.1.4:80")).errors).toEqual({ EPERM: 1 });
    expect(counters("empty:80").refused).toEqual({ "no-endpoint": 1 });
    expect(counters("missing:80").refused).toEqual({ "missing-cluster": 1 });
    expect(counters("tls:80").refused).toEqual({ "tls-required": 1 });
    expect(counters("policy:80").refused).toEqual({ policy: 1 });
  });

  test("a split gives exact shares, and a missing cluster's share is refused", async () => {
    const mesh = emptyMesh();
    addCluster(mesh, "a", [endpoint(A)]);
    addCluster(mesh, "b", [endpoint(B)]);
    mesh.splits.set("s", {
      name: "s",
      shares: [
        { cluster: "a", weight: 80 },
        { cluster: "b", weight: 20 },
      ],
    });
    mesh.splits.set("m", {
      name: "m",
      shares: [
        { cluster: "a", weight: 50 },
        { cluster: "gone", weight: 50 },
      ],
    });
    addFrontend(mesh, "10.96.2.1:80", { kind: "split", split: "s" });
    addFrontend(mesh, "10.96.2.2:80", { kind: "split", split: "m" });
    lab.publish(mesh);
    expect((await lab.connect("10.96.2.1:80", { count: 1000 })).by).toEqual({ a: 800, b: 200 });
    expect(await lab.connect("10.96.2.2:80", { count: 10 })).toMatchObject({
      by: { a: 5 },
      errors: { ECONNREFUSED: 5 },
    });
  });

  test("an app that uses both families in turn gets all endpoints of each", async () => {
    const mesh = meshOf((made) => addCluster(made, "c", [endpoint(A), endpoint(B), endpoint(C6)]));
    addFrontend(mesh, "[2001:2::1]:80", { kind: "cluster", cluster: "c" });
    lab.publish(mesh);
    const met: string[] = [];
    for (let turn = 0; turn < 4; turn++) {
      met.push(...Object.keys((await lab.connect("10.96.0.1:80")).by));
      met.push(...Object.keys((await lab.connect("[2001:2::1]:80")).by));
    }
    expect(met.sort()).toEqual(["a", "a", "b", "b", "c6", "c6", "c6", "c6"]);
  });

  test("round robin keeps endpoint weights, least request goes where fewer live", async () => {
    lab.publish(meshOf((mesh) => addCluster(mesh, "c", [endpoint(A, { weight: 3 }), endpoint(B)])));
    expect((await lab.connect("10.96.0.1:80", { count: 400 })).by).toEqual({ a: 300, b: 100 });
    const mesh = emptyMesh();
    addFrontend(mesh, "10.96.0.1:80", { kind: "cluster", cluster: "c" });
    addFrontend(mesh, "10.96.0.2:80", { kind: "cluster", cluster: "only-a" });
    addCluster(mesh, "c", [endpoint(A), endpoint(B)], { balance: { policy: "least-request" } });
    addCluster(mesh, "only-a", [endpoint(A)]);
    lab.publish(mesh);
    const { client } = await lab.keep("10.96.0.2:80", 5);
    expect((await lab.connect("10.96.0.1:80", { count: 20 })).by).toEqual({ b: 20 });
    await client.close();
  });

  test("hashing sends one source to one endpoint; random to all", async () => {
    for (const policy of ["ring-hash", "maglev"] as const) {
      lab.publish(
        meshOf((mesh) =>
          addCluster(mesh, "c", [endpoint(A), endpoint(B)], { balance: { policy, tableSize: 0 } }),
        ),
      );
      const { by } = await lab.connect("10.96.0.1:80", { count: 20 });
      expect(Object.values(by)).toEqual([20]);
    }
    const both = new Set<string>();
    for (let node = 1; node <= 12; node++) {
      lab.reopen({ nodeAddresses: [`172.31.0.${node}`] });
      const { by } = await lab.connect("10.96.0.1:80");
      // The same node is the same source, whatever the family of its socket.
      expect((await lab.connect("10.96.0.1:80", { mapped: true })).by).toEqual(by);
      for (const name of Object.keys(by)) both.add(name);
    }
    expect(both.size).toBe(2);
    lab.reopen();
    const random = { balance: { policy: "random" } } as const;
    lab.publish(meshOf((mesh) => addCluster(mesh, "c", [endpoint(A), endpoint(B)], random)));
    const { by } = await lab.connect("10.96.0.1:80", { count: 200 });
    expect(Object.keys(by).sort()).toEqual(["a", "b"]);
  });

  test("a lower priority takes over when the first has nobody healthy", async () => {
    const failover = (healthy: boolean) =>
      meshOf((mesh) =>
        addCluster(mesh, "c", [], {
          panicThreshold: 0,
          localities: [
            locality([endpoint(A, { healthy })], { zone: "near" }),
            locality([endpoint(B)], { zone: "far", priority: 1 }),
          ],
        }),
      );
    lab.publish(failover(true));
    expect((await lab.connect("10.96.0.1:80", { count: 5 })).by).toEqual({ a: 5 });
    lab.publish(failover(false));
    expect((await lab.connect("10.96.0.1:80", { count: 5 })).by).toEqual({ b: 5 });
  });

  test("live connections are counted once each, and max_connections holds", async () => {
    lab.publish(meshOf((mesh) => addCluster(mesh, "c", [endpoint(A)], { maxConnections: 3 })));
    const { client, tally } = await lab.keep("10.96.0.1:80", 5);
    expect(tally).toMatchObject({ made: 3, errors: { ECONNREFUSED: 2 } });
    expect(live("c")).toBe(3);
    await client.close();
    await eventually("the connections are taken back", () => live("c") === 0);
    expect((await lab.connect("10.96.0.1:80", { count: 20 })).made).toBe(20);
    await eventually("the connections are taken back", () => live("c") === 0);
  });

  test("a cluster with a port override keeps the address, shows the port that the app asked for, and counts", async () => {
    const mesh = emptyMesh();
    addCluster(mesh, "port", [], { kind: "port-override", port: 8080, maxConnections: 3 });
    addFrontend(mesh, "172.31.1.1:7111", { kind: "cluster", cluster: "port" });
    addFrontend(
      mesh,
      { kind: "prefix", address: "fd00:31::", length: 64, port: 7111 },
      { kind: "cluster", cluster: "port" },
    );
    lab.publish(mesh);
    const before = counters("svc:80").redirected;
    const tally = await lab.connect("172.31.1.1:7111", { count: 5 });
    expect(tally).toMatchObject({ made: 5, by: { a: 5 }, peers: { "172.31.1.1 7111": 5 }, errors: {} });
    expect(await lab.connect("172.31.1.1:7111", { mapped: true })).toMatchObject({
      by: { a: 1 },
      peers: { "::ffff:172.31.1.1 7111": 1 },
    });
    expect(await lab.connect("[fd00:31::3]:7111")).toMatchObject({
      by: { c6: 1 },
      peers: { "fd00:31::3 7111": 1 },
    });
    expect(counters("svc:80").redirected).toBe(before + 7);
    expect(explainPinned(lab.bpffs, "172.31.1.1", 7111)).toMatchObject({ verdict: "redirect" });
    await eventually("the connections are taken back", () => live("port") === 0);
    const { client, tally: kept } = await lab.keep("172.31.1.1:7111", 5);
    expect(kept).toMatchObject({ made: 3, errors: { ECONNREFUSED: 2 } });
    expect(explainPinned(lab.bpffs, "172.31.1.1", 7111)).toMatchObject({ reason: "max-connections" });
    await client.close();
    await eventually("the connections are taken back", () => live("port") === 0);
    // The override's own write goes with the cluster's digest: another port is another descriptor.
    addCluster(mesh, "port", [], { kind: "port-override", port: 8081, maxConnections: 3 });
    expect(lab.publish(mesh)).toBeGreaterThan(0);
    expect((await lab.connect("172.31.1.1:7111")).errors).toEqual({ ECONNREFUSED: 1 });
  });

  test("a port that leads to an endpoint already takes another one, of whatever service", async () => {
    const mesh = emptyMesh();
    for (const [i, name] of ["one", "two", "three"].entries()) {
      addCluster(mesh, name, [endpoint(A), endpoint(B)]);
      addFrontend(mesh, `10.96.11.${i + 1}:80`, { kind: "cluster", cluster: name });
    }
    lab.publish(mesh);
    // Whichever is next for the second, it is the other one's.
    for (let port = 40_120; port < 40_126; port++) await twice({ source: "172.31.1.1", source_port: port });
  });

  async function twice(bound: { source: string; source_port: number }): Promise<void> {
    const first = await lab.keep("10.96.11.1:80", 1, bound);
    const second = await lab.keep("10.96.11.2:80", 1, bound);
    try {
      expect(first.tally).toMatchObject({ made: 1, peers: { "10.96.11.1 80": 1 } });
      expect(second.tally).toMatchObject({ made: 1, peers: { "10.96.11.2 80": 1 } });
      expect({ ...first.tally.by, ...second.tally.by }).toEqual({ a: 1, b: 1 });
      // Both are taken: there the kernel has the last word.
      expect((await lab.connect("10.96.11.3:80", bound)).errors).toEqual({ EADDRNOTAVAIL: 1 });
      expect((await lab.connect("10.96.11.3:80", { source: "172.31.1.1" })).made).toBe(1);
    } finally {
      await first.client.close();
      await second.client.close();
    }
  }

  test("a pending cluster keeps what its name stood for", async () => {
    lab.publish(meshOf((mesh) => addCluster(mesh, "c", [endpoint(A)])));
    expect(lab.publish(meshOf((mesh) => addCluster(mesh, "c", [], { pending: true })))).toBe(0);
    expect((await lab.connect("10.96.0.1:80")).by).toEqual({ a: 1 });
  });

  test("what an earlier start left stays where the mesh does not know yet, and goes when it does", async () => {
    const known = emptyMesh();
    addCluster(known, "a", [endpoint(A)]);
    addCluster(known, "b", [endpoint(B)]);
    known.splits.set("s", { name: "s", shares: [{ cluster: "a", weight: 1 }] });
    addFrontend(known, "10.96.4.1:80", { kind: "split", split: "s" }, "routed:80");
    addFrontend(known, "10.96.4.2:80", { kind: "cluster", cluster: "b" }, "gone:80");
    addFrontend(known, "10.96.4.3:81", { kind: "cluster", cluster: "b" }, "other:81");
    known.fallback = { kind: "refuse", reason: "not-in-registry" };
    lab.publish(known);
    expect((await lab.connect("10.96.4.1:80", { count: 2 })).by).toEqual({ a: 2 });
    const counted = counters("routed:80").redirected;
    lab.reopen();
    // The routes of port 80 are late, and the clusters are here.
    const late = emptyMesh();
    for (const [name, one] of known.clusters) late.clusters.set(name, one);
    late.pending = { ports: new Set([80]), fallback: true };
    lab.publish(late);
    expect((await lab.connect("10.96.4.1:80")).by).toEqual({ a: 1 });
    expect((await lab.connect("10.96.4.2:80")).by).toEqual({ b: 1 });
    // Port 81 is known to have none; the fallback is not known.
    expect((await lab.connect("10.96.4.3:81")).errors).toEqual({ EPERM: 1 });
    expect(counters("routed:80").redirected).toBe(counted + 1);
    // A frontend that is itself waiting for its routes leaves the kernel's as it is.
    addFrontend(late, "10.96.4.1:80", { kind: "cluster", cluster: "b" }, "routed:80");
    const waiting = late.frontends.get("tcp 10.96.4.1:80");
    if (waiting) late.frontends.set("tcp 10.96.4.1:80", { ...waiting, pending: true });
    lab.publish(late);
    expect((await lab.connect("10.96.4.1:80")).by).toEqual({ a: 1 });
    // They come: one service of the two, and nothing is written for it.
    const whole = emptyMesh();
    for (const [name, one] of known.clusters) whole.clusters.set(name, one);
    whole.splits.set("s", { name: "s", shares: [{ cluster: "a", weight: 1 }] });
    addFrontend(whole, "10.96.4.1:80", { kind: "split", split: "s" }, "routed:80");
    whole.fallback = { kind: "refuse", reason: "not-in-registry" };
    lab.publish(whole);
    expect((await lab.connect("10.96.4.1:80")).by).toEqual({ a: 1 });
    expect((await lab.connect("10.96.4.2:80")).errors).toEqual({ EPERM: 1 });
    expect(counters("routed:80").redirected).toBe(counted + 3);
    expect(lab.publish(whole)).toBe(0);
  });

  test("explain walks the same way", async () => {
    const mesh = emptyMesh();
    addCluster(mesh, "a", [endpoint(A), endpoint(B, { weight: 3 })]);
    addFrontend(mesh, "10.96.0.1:80", { kind: "cluster", cluster: "a" });
    lab.publish(mesh);
    const found = explainPinned(lab.bpffs, "10.96.0.1", 80);
    expect(found).toMatchObject({ verdict: "redirect", frontend: "10.96.0.1:80", service: "svc:80" });
    expect(found.clusters[0]?.endpoints).toEqual([
      { address: "172.31.1.1", port: 8080, share: 0.25, live: 0, failed: 0, failures: 0, ejectedFor: 0 },
      { address: "172.31.1.2", port: 8080, share: 0.75, live: 0, failed: 0, failures: 0, ejectedFor: 0 },
    ]);
    expect(explainPinned(lab.bpffs, "127.0.0.1", 80)).toMatchObject({ verdict: "pass" });
    expect(explainPinned(lab.bpffs, "10.9.9.9", 80).why[0]).toContain("no frontend matches");
  });

  test("a frontend whose record never fits its key is refused and counted, not passed", async () => {
    const mesh = meshOf((made) => addCluster(made, "c", [endpoint(A)]));
    // What would pass, were the frontend taken for missing.
    addFrontend(mesh, { kind: "port", port: 80 }, { kind: "cluster", cluster: "c" });
    lab.publish(mesh);
    const before = counters("").refused.internal ?? 0;
    const tables = openPinned(lab.bpffs);
    const id = new Uint32Array(1);
    tables.maps.frontends.lookup(new Uint8Array(4), new Uint8Array(id.buffer));
    const hash = BpfMap.fromId(id[0] ?? 0);
    const key = exactKey("10.96.0.1", 80);
    const right = new Uint8Array(8);
    try {
      expect(hash.lookup(key, right)).toBe(true);
      hash.update(
        key,
        Uint8Array.from(right, (byte, i) => (i < 4 ? byte : ~byte)),
      );
      expect((await lab.connect("10.96.0.1:80")).errors).toEqual({ EPERM: 1 });
      expect(counters("").refused.internal).toBe(before + 1);
      hash.update(key, right);
      expect((await lab.connect("10.96.0.1:80")).by).toEqual({ a: 1 });
    } finally {
      hash.close();
      tables.close();
    }
  });

  test("240.0.0.0/4 is governed like any other address; what is exempt is so for the program and for explain", async () => {
    const mesh = emptyMesh();
    addCluster(mesh, "a", [endpoint(A)]);
    for (const at of ["240.1.2.3:80", "240.240.0.9:80", "255.255.255.254:80"])
      addFrontend(mesh, at, { kind: "cluster", cluster: "a" });
    mesh.fallback = { kind: "refuse", reason: "not-in-registry" };
    lab.publish(mesh);
    const before = counters("").refused["not-in-registry"] ?? 0;
    for (const address of ["240.1.2.3", "240.240.0.9", "255.255.255.254"]) {
      const tally = await lab.connect(`${address}:80`);
      expect(tally).toMatchObject({ by: { a: 1 }, peers: { [`${address} 80`]: 1 } });
      expect(explainPinned(lab.bpffs, address, 80).verdict).toBe("redirect");
    }
    expect((await lab.connect("240.9.9.9:80")).errors).toEqual({ EPERM: 1 });
    expect(counters("").refused["not-in-registry"]).toBe(before + 1);
    // No EPERM: the kernel itself has the last word about them.
    for (const { address } of EXEMPT) {
      const at = address.includes(":") ? `[${address}]:9` : `${address}:9`;
      expect([address, Object.keys((await lab.connect(at, { timeout: 1 })).errors)]).not.toEqual([
        address,
        ["EPERM"],
      ]);
      expect(explainPinned(lab.bpffs, address, 9).why[0]).toContain("always exempt");
    }
    expect(counters("").refused["not-in-registry"]).toBe(before + 1);
  });

  test("the machine's broadcast addresses are exempt, as long as it has them", async () => {
    const mesh = emptyMesh();
    addCluster(mesh, "a", [endpoint(A)]);
    addFrontend(mesh, "10.96.12.255:80", { kind: "cluster", cluster: "a" });
    lab.publish(mesh);
    expect((await lab.connect("10.96.12.255:80")).by).toEqual({ a: 1 });
    lab.datapath.exemptBroadcasts(["10.96.12.255", "10.96.13.255"]);
    expect((await lab.connect("10.96.12.255:80")).errors).toEqual({ ENETUNREACH: 1 });
    expect(explainPinned(lab.bpffs, "10.96.12.255", 80).why[0]).toContain(
      "a broadcast address of this machine",
    );
    expect(lab.datapath.inspect().settings?.exclusions).toEqual([]);
    // What the configuration excludes comes and goes beside them.
    lab.reopen({ excludes: [{ address: "10.96.0.0", length: 24, port: 80 }] });
    expect((await lab.connect("10.96.12.255:80")).errors).toEqual({ ENETUNREACH: 1 });
    lab.reopen();
    lab.datapath.exemptBroadcasts([]);
    expect((await lab.connect("10.96.12.255:80")).by).toEqual({ a: 1 });
  });

  test("excluded destinations pass; shadow mode decides and counts, and changes nothing", async () => {
    lab.publish(meshOf((mesh) => addCluster(mesh, "c", [endpoint(A)])));
    lab.reopen({ excludes: [{ address: "10.96.0.0", length: 24, port: 80 }] });
    expect((await lab.connect("10.96.0.1:80")).errors).toEqual({ ENETUNREACH: 1 });
    lab.reopen({ shadow: true });
    const before = counters("svc:80");
    expect((await lab.connect("10.96.0.1:80")).errors).toEqual({ ENETUNREACH: 1 });
    expect(counters("svc:80").wouldRedirect).toBe(before.wouldRedirect + 1);
    lab.reopen();
    expect((await lab.connect("10.96.0.1:80")).by).toEqual({ a: 1 });
  });

  test("what did not change is not written, also by another start", async () => {
    const mesh = meshOf((made) => addCluster(made, "c", [endpoint(A), endpoint(B)]));
    addFrontend(
      mesh,
      { kind: "prefix", address: "10.97.0.0", length: 16, port: 80 },
      { kind: "cluster", cluster: "c" },
    );
    mesh.splits.set("s", {
      name: "s",
      shares: [
        { cluster: "c", weight: 1 },
        { cluster: "gone", weight: 1 },
      ],
    });
    addFrontend(mesh, "10.96.3.1:80", { kind: "split", split: "s" });
    expect(lab.publish(mesh)).toBeGreaterThan(0);
    expect(lab.publish(mesh)).toBe(0);
    const reopened = lab.reopen();
    expect(reopened.adopted).toBe(true);
    expect(reopened.attached).toBe(true);
    expect(lab.publish(mesh)).toBe(0);
    mesh.frontends.delete("tcp 10.96.3.1:80");
    mesh.splits.delete("s");
    expect(lab.publish(mesh)).toBeGreaterThan(0);
    const { clusters, frontends } = lab.datapath.inspect();
    expect(frontends.map(({ match }) => match).sort()).toEqual(["10.96.0.1:80", "10.97.0.0/16:80"]);
    expect(clusters.length).toBeGreaterThan(0);
    expect((await lab.connect("10.96.0.1:80", { count: 4 })).by).toEqual({ a: 2, b: 2 });
  });

  test("a new service does not inherit the counters of one that went", async () => {
    const toA = (service: string) => {
      const mesh = emptyMesh();
      addCluster(mesh, "c", [endpoint(A)]);
      addFrontend(mesh, "10.96.0.1:80", { kind: "cluster", cluster: "c" }, service);
      return mesh;
    };
    lab.publish(toA("old:80"));
    expect((await lab.connect("10.96.0.1:80", { count: 3 })).made).toBe(3);
    expect(counters("old:80").redirected).toBe(3);
    lab.publish(emptyMesh());
    lab.reopen();
    lab.publish(toA("new:80"));
    expect(counters("new:80").redirected).toBe(0);
  });

  test("a mesh that fails halfway leaves nothing behind when the next one is written", async () => {
    const mesh = emptyMesh();
    addCluster(mesh, "a", [endpoint(A)]);
    addCluster(mesh, "b", [endpoint(B)]);
    const block = { kind: "prefix", address: "10.97.0.0", length: 16, port: 80 } as const;
    addFrontend(mesh, block, { kind: "cluster", cluster: "a" });
    addFrontend(mesh, "10.96.0.1:80", { kind: "cluster", cluster: "a" });
    lab.publish(mesh);
    const broken = emptyMesh();
    addCluster(broken, "b", [endpoint(B)]);
    addFrontend(broken, "10.96.0.1:80", { kind: "cluster", cluster: "b" });
    addFrontend(
      broken,
      { kind: "address", address: "nonsense", port: 80 },
      { kind: "cluster", cluster: "b" },
    );
    expect(() => lab.publish(broken)).toThrow("nonsense");
    expect((await lab.connect("10.97.1.1:80")).by).toEqual({ a: 1 });
    const mended = emptyMesh();
    addCluster(mended, "b", [endpoint(B)]);
    addFrontend(mended, "10.96.0.1:80", { kind: "cluster", cluster: "b" });
    lab.datapath.publish(mended, emptyDelta());
    expect(lab.datapath.inspect().frontends.map(({ match }) => match)).toEqual(["10.96.0.1:80"]);
    expect((await lab.connect("10.97.1.1:80")).made).toBe(0);
    expect((await lab.connect("10.96.0.1:80", { count: 3 })).by).toEqual({ b: 3 });
    expect(lab.publish(mended)).toBe(0);
  });

  test("hooks that were detached under their pins are attached again by the next start", async () => {
    const mesh = meshOf((made) => addCluster(made, "c", [endpoint(A)]));
    lab.publish(mesh);
    for (const hook of HOOK_ORDER) {
      using link = CgroupLink.fromPin(linkPin(lab.bpffs, hook));
      link.detach();
    }
    expect((await lab.connect("10.96.0.1:80")).errors).toEqual({ ENETUNREACH: 1 });
    expect(lab.datapath.summarize().hooks.map(({ attached }) => attached)).not.toContain(true);
    expect(lab.reopen().attached).toBe(false);
    expect(lab.publish(mesh)).toBe(0);
    expect((await lab.connect("10.96.0.1:80")).by).toEqual({ a: 1 });
    expect(lab.reopen().attached).toBe(true);
  });

  function counters(service: string) {
    const found = lab.datapath.inspect().services.find((counted) => counted.service === service);
    if (!found) throw new Error(`no counters of ${service}`);
    return found;
  }

  function live(name: string): number {
    return lab.datapath.inspect().clusters.find((state) => state.name === name)?.live ?? -1;
  }
});
