import { afterEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ResourceSink } from "../istiod/stream/sink.ts";
import type { StreamEvent } from "../istiod/stream/status.ts";
import { IstiodStream } from "../istiod/stream/stream.ts";
import { type Answer, ControlPlane, serveFile } from "./control-plane.ts";
import { DecodingSink } from "./decoding-sink.ts";
import { type DemoMesh, type DemoService, manyServices } from "./services.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

function client<T extends ResourceSink>(plane: ControlPlane, sink: T) {
  const events: StreamEvent[] = [];
  const stream = new IstiodStream({
    istiod: `127.0.0.1:${plane.port}`,
    security: { kind: "plaintext" },
    identity: { ips: ["10.0.0.5"], name: "vm1", namespace: "demo" },
    sink,
    on: (event) => events.push(event),
    backoff: { first: 20, longest: 100 },
  });
  cleanups.push(() => stream.stop());
  stream.start();
  return { stream, sink, events };
}

async function until(condition: () => boolean, what: string, limit = 5_000): Promise<void> {
  const start = performance.now();
  while (!condition()) {
    if (performance.now() - start > limit) throw new Error(`waited ${limit} ms in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function serve(mesh: DemoMesh) {
  const answers: Answer[] = [];
  const plane = await ControlPlane.start(mesh, { heard: (answer) => answers.push(answer) });
  cleanups.push(() => plane.stop());
  return { plane, answers };
}

const TCP: DemoService = {
  host: "db.demo",
  addresses: ["10.99.0.1", "fd99::1"],
  port: 5432,
  balance: "maglev",
  endpoints: [
    { address: "10.98.0.1", port: 6000, subset: "v1" },
    { address: "10.98.0.2", port: 6000, weight: 3, locality: "r/z/s", priority: 1, subset: "v2" },
    { address: "10.98.0.3", port: 6000, healthy: false, subset: "v1" },
  ],
  split: { v1: 90, v2: 10 },
};
const HTTP: DemoService = {
  host: "web.demo",
  addresses: ["10.99.0.2", "10.99.0.3"],
  port: 80,
  protocol: "http",
  endpoints: [{ address: "10.98.0.9", port: 8080 }],
};
const MESH: DemoMesh = { services: [TCP, HTTP] };

test("the resources have the names and shapes of istiod's", async () => {
  const { plane } = await serve(MESH);
  const { sink } = client(plane, new DecodingSink());
  await until(() => sink.commits.length === 1, "the first commit");
  expect(sink.stored).toEqual([
    "cluster BlackHoleCluster",
    "cluster PassthroughCluster",
    "cluster outbound|5432|v1|db.demo",
    "cluster outbound|5432|v2|db.demo",
    "cluster outbound|5432||db.demo",
    "cluster outbound|80||web.demo",
    "endpoints outbound|5432|v1|db.demo",
    "endpoints outbound|5432|v2|db.demo",
    "endpoints outbound|5432||db.demo",
    "endpoints outbound|80||web.demo",
    "listener 0.0.0.0_80",
    "listener 10.99.0.1_5432",
    "listener fd99::1_5432",
    "listener virtualOutbound",
    "names ",
    "route 80",
  ]);
  expect(sink.clusters.get("outbound|5432|v1|db.demo")).toMatchObject({
    type: 3,
    lbPolicy: 5,
    edsClusterConfig: { serviceName: "outbound|5432|v1|db.demo" },
    commonLbConfig: { healthyPanicThreshold: {} },
  });
  expect(sink.endpoints.get("outbound|5432||db.demo")).toMatchObject({
    endpoints: [
      { loadBalancingWeight: { value: 2 }, lbEndpoints: [{}, { healthStatus: 2 }] },
      {
        locality: { region: "r", zone: "z", subZone: "s" },
        priority: 1,
        lbEndpoints: [
          {
            endpoint: { address: { socketAddress: { address: "10.98.0.2", portValue: 6000 } } },
            loadBalancingWeight: { value: 3 },
          },
        ],
      },
    ],
  });
  expect(sink.routes.get("80")).toMatchObject({
    name: "80",
    ignorePortInHostMatching: true,
    virtualHosts: [
      { name: "web.demo:80", domains: ["web.demo", "web.demo.", "10.99.0.2"] },
      { name: "allow_any", routes: [{ route: { cluster: "PassthroughCluster" } }] },
    ],
  });
  expect(sink.names.get("")).toMatchObject({
    table: { "db.demo": { ips: ["10.99.0.1", "fd99::1"] }, "web.demo": { ips: ["10.99.0.2", "10.99.0.3"] } },
  });
});

test("a split is weighted clusters, and the mesh's default decides where the unknown goes", async () => {
  const { plane } = await serve({ ...MESH, outbound: "REGISTRY_ONLY" });
  const { sink } = client(plane, new DecodingSink());
  await until(() => sink.commits.length === 1, "the first commit");
  expect(sink.tcpProxies("10.99.0.1_5432").at(-1)?.weightedClusters?.clusters).toMatchObject([
    { name: "outbound|5432|v1|db.demo", weight: 90 },
    { name: "outbound|5432|v2|db.demo", weight: 10 },
  ]);
  expect(sink.tcpProxies("virtualOutbound").at(-1)?.cluster).toBe("BlackHoleCluster");
  expect(sink.routes.get("80")).toMatchObject({
    virtualHosts: [{}, { name: "block_all", routes: [{ directResponse: { status: 502 } }] }],
  });
});

test("blocks of addresses and services without one become listeners for the port", async () => {
  const { plane } = await serve({
    services: [
      { host: "block.demo", addresses: ["10.50.0.0/16"], port: 7000, endpoints: [] },
      { host: "wide.demo", addresses: [], port: 7001, endpoints: [] },
    ],
  });
  const { sink } = client(plane, new DecodingSink());
  await until(() => sink.commits.length === 1, "the first commit");
  expect(sink.listeners.get("0.0.0.0_7000")).toMatchObject({
    filterChains: [
      { filterChainMatch: { prefixRanges: [{ addressPrefix: "10.50.0.0", prefixLen: { value: 16 } }] } },
    ],
    defaultFilterChain: { name: "PassthroughFilterChain" },
  });
  expect(sink.tcpProxies("0.0.0.0_7001").at(-1)?.cluster).toBe("outbound|7001||wide.demo");
});

test("a changed split is one push of what differs", async () => {
  const { plane, answers } = await serve(MESH);
  const { sink } = client(plane, new DecodingSink());
  await until(() => sink.commits.length === 1, "the first commit");
  sink.calls.length = 0;
  const version = plane.set({ services: [{ ...TCP, split: { v1: 50, v2: 50 } }, HTTP] });
  await until(() => sink.commits.length === 2, "the second commit");
  await pause(50);
  expect(sink.commits).toEqual(["demo/1", version]);
  expect(sink.calls).toEqual(["upsert listener 10.99.0.1_5432", "upsert listener fd99::1_5432"]);
  expect(answers.filter(({ error }) => error !== undefined)).toEqual([]);
});

test("changed endpoints go out alone and are live at once", async () => {
  const { plane } = await serve(MESH);
  const { sink, events } = client(plane, new DecodingSink());
  await until(() => sink.commits.length === 1, "the first commit");
  sink.calls.length = 0;
  plane.set({ services: [TCP, { ...HTTP, endpoints: [{ address: "10.98.0.8", port: 8080 }] }] });
  await until(() => sink.commits.length === 2, "the second commit");
  expect(sink.calls).toEqual(["upsert endpoints outbound|80||web.demo"]);
  expect(events.at(-1)).toMatchObject({ kind: "committed", first: false });
});

test("subsets renamed over and over are never seen by halves", async () => {
  const named = (subset: string): DemoMesh => ({
    services: [
      { ...HTTP, endpoints: [{ address: "10.98.0.9", port: 8080, subset }], split: { [subset]: 1 } },
      { ...TCP, endpoints: [{ address: "10.98.0.1", port: 6000, subset }], split: { [subset]: 1 } },
    ],
  });
  const { plane } = await serve(named("s0"));
  const dangling: string[] = [];
  class Watcher extends DecodingSink {
    override commit(push: { version: string }): void {
      super.commit(push);
      dangling.push(...this.dangling.map((target) => `${push.version}: ${target}`));
    }
  }
  const { sink } = client(plane, new Watcher());
  await until(() => sink.commits.length === 1, "the first commit");
  for (let i = 1; i <= 100; i++) {
    plane.set(named(`s${i}`));
    await pause(i % 4 === 0 ? 30 : i % 3);
  }
  await until(() => sink.endpoints.has("outbound|80|s100|web.demo"), "the last name");
  await until(() => sink.commits.at(-1) === plane.version, "the last push");
  expect(dangling).toEqual([]);
  expect(sink.commits.length).toBeGreaterThan(20);
  expect(sink.stored.filter((key) => key.startsWith("endpoints")).length).toBe(4);
});

test("a removed service takes its resources with it, without waiting for anything", async () => {
  const { plane } = await serve(MESH);
  const { sink } = client(plane, new DecodingSink());
  await until(() => sink.commits.length === 1, "the first commit");
  const start = performance.now();
  plane.set({ services: [TCP] });
  await until(() => sink.commits.length === 2, "the second commit");
  // A client waits five seconds for an answer that never comes.
  expect(performance.now() - start).toBeLessThan(4_000);
  expect(sink.stored.filter((key) => key.includes("web") || key.includes("80"))).toEqual([]);
});

test("a restarted control plane with the same services changes nothing", async () => {
  const first = await ControlPlane.start(MESH);
  const { sink, stream } = client(first, new DecodingSink());
  await until(() => sink.commits.length === 1, "the first commit");
  sink.calls.length = 0;
  first.stop();
  await until(() => !stream.status().connected, "the loss");
  const second = await ControlPlane.start({ services: [...MESH.services].reverse() }, { port: first.port });
  cleanups.push(() => second.stop());
  await until(() => stream.status().connections === 2, "the reconnect");
  await pause(100);
  // The order of hosts is part of a table of names; everything else is the same.
  expect(sink.calls).toEqual(["upsert names "]);
});

test("a file is served, its changes are pushed, and a broken one changes nothing", async () => {
  const folder = mkdtempSync(join(tmpdir(), "kmesh-demo-"));
  cleanups.push(() => rmSync(folder, { recursive: true, force: true }));
  const file = join(folder, "mesh.yaml");
  const write = (weights: string) =>
    writeFileSync(
      file,
      `services:
  - host: shop.demo
    addresses: [10.99.0.1]
    port: 80
    endpoints:
      - { address: 10.98.0.1, port: 80, subset: v1 }
      - { address: 10.98.0.2, port: 80, subset: v2 }
    split: ${weights}
`,
    );
  write("{ v1: 90, v2: 10 }");
  const plane = await serveFile(file, 0);
  cleanups.push(() => plane.stop());
  const { sink } = client(plane, new DecodingSink());
  await until(() => sink.commits.length === 1, "the first commit");
  const errors: string[] = [];
  const { error } = console;
  console.error = (text: string) => errors.push(text);
  cleanups.push(() => {
    console.error = error;
  });
  write("{ v1: many }");
  await until(() => errors.length > 0, "the complaint");
  expect(errors[0]).toContain("services[0].split.v1: expected a whole number");
  expect(sink.commits.length).toBe(1);
  write("{ v1: 50, v2: 50 }");
  await until(() => sink.commits.length === 2, "the change");
  expect(
    sink
      .tcpProxies("10.99.0.1_80")
      .at(-1)
      ?.weightedClusters?.clusters?.map(({ weight }) => weight),
  ).toEqual([50, 50]);
});

test("ten thousand services with a hundred thousand endpoints are served", async () => {
  const { plane } = await serve(manyServices(10_000, 10));
  const counts: Record<string, number> = {};
  const wanted = { endpoints: new Set<string>(), route: new Set(["80"]) };
  let commits = 0;
  const sink: ResourceSink = {
    upsert(type, name) {
      counts[type] = (counts[type] ?? 0) + 1;
      if (type === "cluster" && name.startsWith("outbound")) wanted.endpoints.add(name);
    },
    remove() {},
    wanted: (type) => wanted[type],
    commit() {
      commits++;
    },
  };
  const { stream } = client(plane, sink);
  await until(() => commits === 1, "the first commit", 20_000);
  expect(counts).toEqual({ cluster: 10_002, listener: 5_002, endpoints: 10_000, route: 1, names: 1 });
  expect(stream.status().types.endpoints.unanswered).toBe(0);
}, 30_000);
