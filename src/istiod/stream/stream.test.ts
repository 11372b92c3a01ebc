import { afterEach, expect, setSystemTime, test } from "bun:test";
import { status } from "@grpc/grpc-js";
import {
  RecordingSink,
  ScriptedIstiod,
  type ScriptedStream,
  until,
} from "../../../test/lab/scripted-istiod.ts";
import type { ResourceType } from "./sink.ts";
import type { StreamEvent } from "./status.ts";
import { IstiodStream, type StreamOptions } from "./stream.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

const IDENTITY = { ips: ["10.0.0.5"], name: "vm1", namespace: "shop" };
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

interface World {
  clusters: Record<string, string>;
  listeners: Record<string, string>;
  endpoints: Record<string, string>;
  routes: Record<string, string>;
}

const SMALL: World = {
  clusters: { a: "eds a", b: "eds b", Passthrough: "original" },
  listeners: { "10.0.0.1_80": "tcp a", "0.0.0.0_80": "rds 80" },
  endpoints: { a: "10.1.0.1", b: "10.1.0.2" },
  routes: { "80": "b" },
};

/** A server that answers as istiod does: whole types at once, names when asked. */
async function serve(world: World, options: { withhold?: string[]; reverse?: boolean; port?: number } = {}) {
  const istiod = new ScriptedIstiod();
  const order = (resources: Record<string, string>) =>
    options.reverse ? Object.fromEntries(Object.entries(resources).reverse()) : resources;
  istiod.onRequest = (stream, request) => {
    if (request.responseNonce !== "") return;
    if (request.type === "cluster") stream.send("cluster", { resources: order(world.clusters) });
    if (request.type === "listener") stream.send("listener", { resources: order(world.listeners) });
    if (request.type === "names") stream.send("names", { resources: { "": "names" } });
    for (const [type, known] of [
      ["endpoints", world.endpoints],
      ["route", world.routes],
    ] as const) {
      const names = request.resourceNamesSubscribe.filter((name) => !options.withhold?.includes(name));
      if (request.type !== type || names.length === 0) continue;
      stream.send(type, {
        resources: order(Object.fromEntries(names.map((name) => [name, known[name] ?? ""]))),
      });
    }
  };
  await istiod.start(options.port);
  cleanups.push(() => istiod.stop());
  return istiod;
}

function client(port: number, options: Partial<StreamOptions> = {}) {
  const sink = new RecordingSink();
  const events: StreamEvent[] = [];
  const stream = new IstiodStream({
    istiod: `127.0.0.1:${port}`,
    security: { kind: "plaintext" },
    identity: IDENTITY,
    sink,
    on: (event) => events.push(event),
    backoff: { first: 20, longest: 200 },
    ...options,
  });
  cleanups.push(() => stream.stop());
  stream.start();
  return { sink, stream, events };
}

/** Every response of the server was answered, the last ones with an ACK. */
const acknowledged = (stream: ScriptedStream, nonce: string) =>
  stream.answers.some((answer) => answer.responseNonce === nonce && answer.errorDetail == null);

async function synced(world: World = SMALL, options: Partial<StreamOptions> = {}) {
  const istiod = await serve(world);
  const agent = client(istiod.port, options);
  await until(() => agent.sink.commits.length === 1, "the first commit");
  agent.sink.calls.length = 0;
  return { istiod, ...agent };
}

test("the first snapshot is one commit, made when clusters, endpoints, listeners, routes and names are there", async () => {
  const istiod = await serve(SMALL);
  const { sink, stream } = client(istiod.port);
  await until(() => sink.commits.length > 0, "a commit");
  await pause(60);
  expect(sink.commits).toEqual([
    {
      version: "v1",
      first: true,
      stored: {
        "cluster a": "eds a",
        "cluster b": "eds b",
        "cluster Passthrough": "original",
        "listener 10.0.0.1_80": "tcp a",
        "listener 0.0.0.0_80": "rds 80",
        "names ": "names",
        "endpoints a": "10.1.0.1",
        "endpoints b": "10.1.0.2",
        "route 80": "b",
      },
    },
  ]);
  const requests = istiod.last.requests;
  expect(requests[0]?.node?.id).toBe("sidecar~10.0.0.5~vm1.shop~shop.svc.cluster.local");
  expect(requests.filter((request) => request.node != null).length).toBe(1);
  const mixed = requests.filter(
    (request) =>
      request.responseNonce !== "" &&
      request.resourceNamesSubscribe.length + request.resourceNamesUnsubscribe.length > 0,
  );
  expect(mixed).toEqual([]);
  expect(istiod.last.answers.length).toBe(5);
  const state = stream.status();
  expect(state.connected).toBe(true);
  expect(state.synced).toBe(true);
  expect(state.types.endpoints).toMatchObject({ resources: 2, subscribed: 2, unanswered: 0 });
});

test("unchanged resources don't reach the sink again", async () => {
  const { istiod, sink, stream } = await synced();
  const nonce = istiod.last.send("cluster", {
    version: "v2",
    resources: { ...SMALL.clusters, b: "eds b changed" },
  });
  await until(() => sink.commits.length === 2, "the second commit");
  expect(sink.calls).toEqual([
    "upsert cluster b",
    "remove endpoints b",
    "upsert endpoints b changed",
    "commit v1",
  ]);
  expect(acknowledged(istiod.last, nonce)).toBe(true);
  expect(stream.status().types.cluster.unchanged).toBe(2);
});

test("a server that restarts and sends everything in another order changes nothing", async () => {
  const { istiod, sink, stream, events } = await synced();
  const port = istiod.port;
  istiod.stop();
  await until(() => !stream.status().connected, "the loss");
  expect(sink.calls).toEqual([]);
  const again = await serve(SMALL, { reverse: true, port });
  await until(() => stream.status().connections === 2, "the reconnect");
  await until(() => again.last.answers.length === 5, "all answers");
  await pause(60);
  expect(sink.calls).toEqual([]);
  expect(sink.commits.length).toBe(1);
  const [cluster] = again.last.requests;
  expect(Object.keys(cluster?.initialResourceVersions ?? {}).sort()).toEqual(["Passthrough", "a", "b"]);
  expect(again.last.subscribed("endpoints")).toEqual(["a", "b"]);
  expect(events.filter((event) => event.kind === "failed")).toEqual([]);
});

test("a malformed resource is refused by name, the rest of its push applies, and the old one stays", async () => {
  const { istiod, sink, stream } = await synced();
  const nonce = istiod.last.send("listener", {
    version: "v2",
    resources: { "10.0.0.1_80": "bad weight", "10.0.0.2_80": "tcp b", "": "tcp b" },
  });
  await until(() => sink.commits.length === 2, "the commit");
  expect(sink.commits[1]?.stored).toMatchObject({
    "listener 10.0.0.1_80": "tcp a",
    "listener 10.0.0.2_80": "tcp b",
  });
  const answer = istiod.last.answers.find((request) => request.responseNonce === nonce);
  expect(answer?.errorDetail?.code).toBe(3);
  expect(answer?.errorDetail?.message).toBe("10.0.0.1_80: says bad weight; : has no name");
  expect(stream.status().rejected).toMatchObject([
    { type: "listener", resource: "10.0.0.1_80", reason: "says bad weight" },
  ]);
  // The same bytes are not decoded a second time, and refused again.
  sink.calls.length = 0;
  const repeated = istiod.last.send("listener", {
    version: "v3",
    resources: { "10.0.0.1_80": "bad weight" },
  });
  await until(() => istiod.last.answers.some((request) => request.responseNonce === repeated), "an answer");
  expect(istiod.last.answers.at(-1)?.errorDetail?.message).toBe("10.0.0.1_80: says bad weight");
  expect(sink.calls).toEqual([]);
  // A good one ends it.
  istiod.last.send("listener", { version: "v4", resources: { "10.0.0.1_80": "tcp b" } });
  await until(() => sink.commits.length === 3, "the commit");
  expect(stream.status().rejected).toEqual([]);
  const { answered } = stream.status().types.listener;
  expect(answered).toMatchObject({ version: "v4", acks: 2, nacks: 2, lastNack: { version: "v3" } });
  expect(stream.status().types.cluster.answered).toMatchObject({ acks: 1, nacks: 0 });
});

test("renaming a subset is one transaction, from the clusters to the new subset's endpoints", async () => {
  const world: World = {
    ...SMALL,
    clusters: { s1: "eds s1" },
    listeners: { l: "tcp s1" },
    endpoints: { s1: "10.1.0.1" },
  };
  const { istiod, sink } = await synced(world);
  istiod.onRequest = () => {};
  istiod.last.send("cluster", { version: "v2", resources: { s2: "eds s2" }, removed: ["s1"] });
  await pause(40);
  istiod.last.send("endpoints", { version: "v2", resources: { s1: "10.1.0.1" } });
  await pause(40);
  istiod.last.send("listener", { version: "v2", resources: { l: "tcp s2" } });
  await pause(60);
  expect(sink.commits.length).toBe(1);
  expect(istiod.last.subscribed("endpoints")).toEqual(["s2"]);
  istiod.last.send("endpoints", { version: "v2", resources: { s2: "10.1.0.9" } });
  await until(() => sink.commits.length === 2, "the commit");
  await pause(60);
  expect(sink.commits.length).toBe(2);
  expect(sink.commits[1]?.stored).toEqual({
    "cluster s2": "eds s2",
    "listener l": "tcp s2",
    "names ": "names",
    "endpoints s2": "10.1.0.9",
  });
});

test("a removed cluster goes live only together with the listeners and routes of its push", async () => {
  const { istiod, sink } = await synced();
  istiod.last.send("cluster", { version: "v2", removed: ["b"] });
  await pause(60);
  istiod.last.send("listener", { version: "v2", resources: SMALL.listeners });
  await pause(60);
  expect(sink.commits.length).toBe(1);
  istiod.last.send("route", { version: "v2", resources: { "80": "a" } });
  await until(() => sink.commits.length === 2, "the commit");
  expect(sink.calls).toEqual(["remove cluster b", "remove endpoints b", "upsert route 80", "commit v2"]);
});

test("endpoints that never come hold a push back for the time of an answer, and no later one", async () => {
  const istiod = await serve(SMALL, { withhold: ["c"] });
  const { sink, events } = client(istiod.port, { times: { answer: 1_000 } });
  await until(() => sink.commits.length === 1, "the first commit");
  const start = performance.now();
  istiod.last.send("cluster", { version: "v2", resources: { c: "eds c" } });
  await until(() => sink.commits.length === 2, "the commit without them");
  expect(performance.now() - start).toBeGreaterThan(990);
  expect(events).toContainEqual({ kind: "overdue", type: "endpoints", names: ["c"] });
  const later = performance.now();
  istiod.last.send("cluster", { version: "v3", resources: { Passthrough: "original 2" } });
  await until(() => sink.commits.length === 3, "the next commit");
  expect(performance.now() - later).toBeLessThan(900);
});

test("a first snapshot waits for listeners as long as it takes, for a missing route no longer than an answer", async () => {
  const istiod = new ScriptedIstiod();
  await istiod.start();
  cleanups.push(() => istiod.stop());
  const { sink } = client(istiod.port, { times: { answer: 100, firstAnswer: 250 } });
  await until(() => istiod.streams[0]?.requests.length === 3, "the requests");
  istiod.last.send("cluster", { resources: { x: "static" } });
  istiod.last.send("names", { resources: { "": "names" } });
  await pause(350);
  expect(sink.commits.length).toBe(0);
  istiod.last.send("listener", { resources: { l: "rds nowhere" } });
  await pause(150);
  expect(sink.commits.length).toBe(0);
  await until(() => sink.commits.length === 1, "the commit without the route", 1_000);
});

test("what is missing after a reconnect is removed by the first complete response, endpoints and routes never", async () => {
  const { istiod, sink, stream } = await synced();
  const port = istiod.port;
  istiod.stop();
  await until(() => !stream.status().connected, "the loss");
  const again = new ScriptedIstiod();
  await again.start(port);
  cleanups.push(() => again.stop());
  await until(() => (again.streams[0]?.requests.length ?? 0) === 5, "the requests");
  again.last.send("endpoints", { resources: {} });
  again.last.send("route", { resources: {} });
  await pause(60);
  expect(sink.calls).toEqual([]);
  again.last.send("cluster", { version: "w1", resources: { a: "eds a", Passthrough: "original" } });
  await pause(60);
  expect(sink.calls).toEqual(["remove cluster b", "remove endpoints b"]);
  again.last.send("listener", { version: "w1", resources: SMALL.listeners });
  again.last.send("route", { version: "w1", resources: { "80": "a" } });
  await until(() => sink.commits.length === 2, "the commit");
  expect(Object.keys(sink.commits[1]?.stored ?? {}).sort()).toEqual([
    "cluster Passthrough",
    "cluster a",
    "endpoints a",
    "listener 0.0.0.0_80",
    "listener 10.0.0.1_80",
    "names ",
    "route 80",
  ]);
  // The next response of the stream is no complete one.
  again.last.send("cluster", { version: "w2", resources: { a: "eds a" } });
  await pause(60);
  expect(sink.stored.has("cluster Passthrough")).toBe(true);
});

test("a resource without a name in the first response removes nothing by absence", async () => {
  const { istiod, sink, stream } = await synced();
  const port = istiod.port;
  istiod.stop();
  await until(() => !stream.status().connected, "the loss");
  const again = new ScriptedIstiod();
  await again.start(port);
  cleanups.push(() => again.stop());
  await until(() => (again.streams[0]?.requests.length ?? 0) === 5, "the requests");
  const nonce = again.last.send("cluster", { resources: { a: "eds a", "": "eds b" } });
  await until(() => again.last.answers.some((answer) => answer.responseNonce === nonce), "an answer");
  expect(sink.calls).toEqual([]);
});

test("changed endpoints alone go live without a quiet period", async () => {
  const { istiod, sink, events } = await synced();
  const delays: number[] = [];
  for (let i = 0; i < 20; i++) {
    const start = performance.now();
    istiod.last.send("endpoints", { version: "v1", resources: { a: `10.2.0.${i}` } });
    while (sink.commits.length < 2 + i) await new Promise((resolve) => setImmediate(resolve));
    delays.push(performance.now() - start);
  }
  const took = events.flatMap((event) => (event.kind === "committed" && !event.first ? [event.took] : []));
  expect(took.length).toBe(20);
  // With a quiet period of 20 ms none could be faster, however busy the machine is.
  expect(Math.min(...delays)).toBeLessThan(15);
  expect(Math.min(...took)).toBeLessThan(5);
});

test("a push that the connection's loss cut in half goes live only after the rest came", async () => {
  const { istiod, sink, stream } = await synced();
  const port = istiod.port;
  istiod.last.send("cluster", { version: "v2", removed: ["b"] });
  await until(() => sink.calls.length > 0, "the removal");
  istiod.stop();
  await until(() => !stream.status().connected, "the loss");
  await pause(60);
  expect(sink.commits.length).toBe(1);
  expect(stream.status().pendingSince).toBeGreaterThan(0);
  const { b: _gone, ...clusters } = SMALL.clusters;
  await serve({ ...SMALL, clusters, routes: { "80": "a" } }, { port });
  await until(() => sink.commits.length === 2, "the commit");
  expect(sink.commits[1]?.stored["route 80"]).toBe("a");
});

test("back within a second of the server's return, and again after each GOAWAY", async () => {
  const { istiod, stream, events } = await synced();
  const port = istiod.port;
  istiod.stop();
  await until(() => !stream.status().connected, "the loss");
  await pause(500);
  expect(events.filter((event) => event.kind === "disconnected").length).toBeGreaterThan(2);
  expect(stream.status().lastError?.text).toContain("nothing listens at 127.0.0.1");
  const aged = new ScriptedIstiod();
  await aged.start(port, undefined, {
    "grpc.max_connection_age_ms": 150,
    "grpc.max_connection_age_grace_ms": 50,
  });
  aged.onRequest = (served, request) => {
    if (request.type === "cluster" && request.responseNonce === "") {
      served.send("cluster", { resources: SMALL.clusters });
    }
  };
  cleanups.push(() => aged.stop());
  const back = performance.now();
  await until(() => stream.status().connected, "the reconnect");
  expect(performance.now() - back).toBeLessThan(1_000);
  await until(() => stream.status().connections >= 4, "reconnects after GOAWAYs");
});

test("a stream that istiod refuses is explained and tried again", async () => {
  const istiod = await serve(SMALL);
  istiod.onRequest = (stream) => stream.fail(status.PERMISSION_DENIED, "authorization failed");
  const { stream, events } = client(istiod.port);
  await until(() => istiod.streams.length > 2, "further attempts");
  expect(stream.status().lastError?.text).toBe(
    `istiod at 127.0.0.1:${istiod.port} refuses us: --namespace and --service-account must be those of the token (authorization failed)`,
  );
  expect(events.filter((event) => event.kind === "connected")).toEqual([]);
});

test("a response of a type that was never asked for is not answered", async () => {
  const { istiod, events } = await synced();
  const answers = istiod.last.answers.length;
  istiod.last.send("cluster", { typeUrl: "type.googleapis.com/envoy.unknown", resources: { x: "y" } });
  await until(() => events.some((event) => event.kind === "ignored"), "the event");
  expect(istiod.last.answers.length).toBe(answers);
});

test("a sink that fails does not end the stream", async () => {
  const { istiod, sink, stream, events } = await synced();
  sink.commit = () => {
    throw new Error("no memory");
  };
  istiod.last.send("endpoints", { version: "v2", resources: { a: "10.9.9.9" } });
  await until(() => events.some((event) => event.kind === "failed"), "the event");
  expect(stream.status().lastError?.text).toBe("push v2: no memory");
  expect(stream.status().connected).toBe(true);
});

test("proxy variables are ignored", async () => {
  const before = process.env.http_proxy;
  process.env.http_proxy = "http://127.0.0.1:1";
  process.env.grpc_proxy = "http://127.0.0.1:1";
  cleanups.push(() => {
    if (before === undefined) delete process.env.http_proxy;
    else process.env.http_proxy = before;
    delete process.env.grpc_proxy;
  });
  await synced();
});

test("ten thousand names are asked for in portions", async () => {
  const clusters: Record<string, string> = {};
  const endpoints: Record<string, string> = {};
  for (let i = 0; i < 10_000; i++) {
    clusters[`c${i}`] = `eds c${i}`;
    endpoints[`c${i}`] = `10.0.${i >> 8}.${i & 255}`;
  }
  const { istiod, sink } = await synced({ ...SMALL, clusters, endpoints });
  expect(sink.commits[0]?.first).toBe(true);
  const asking = istiod.last.requests.filter(
    (request) => request.type === "endpoints" && request.responseNonce === "",
  );
  expect(asking.length).toBe(5);
  const types: (ResourceType | undefined)[] = istiod.last.requests.map((request) => request.type);
  expect(types.slice(0, 3)).toEqual(["cluster", "listener", "names"]);
});

test("renewed, the stream that serves stays until the new one is answered, and nothing is stored anew", async () => {
  const istiod = await serve(SMALL);
  const { sink, stream, events } = client(istiod.port);
  await until(() => sink.commits.length === 1, "the first commit");
  istiod.onRequest = () => {};
  sink.calls.length = 0;
  stream.renew();
  await until(() => istiod.streams.length === 2, "the second stream");
  const [first, second] = istiod.streams;
  await until(() => second?.requests.length === 1, "its first request");
  expect(second?.requests[0]?.node?.id).toContain("vm1.shop");
  first?.send("endpoints", { resources: { a: "10.1.0.9" } });
  await until(() => sink.stored.get("endpoints a") === "10.1.0.9", "a change by the first stream");
  expect(stream.status()).toMatchObject({ connected: true, connections: 1 });
  const now = await serve({ ...SMALL, endpoints: { ...SMALL.endpoints, a: "10.1.0.9" } });
  istiod.onRequest = (on, request) => now.onRequest(on, request);
  if (second?.requests[0]) istiod.onRequest(second, second.requests[0]);
  await until(() => stream.status().connections === 2, "the move");
  // Before it asks on the new connection nothing is unanswered either.
  await until(() => second?.subscribed("endpoints").length === 2, "its subscriptions");
  await until(() => stream.status().types.endpoints.unanswered === 0, "all answers");
  expect(second?.subscribed("endpoints")).toEqual(["a", "b"]);
  await pause(60);
  expect(sink.calls.filter((call) => !call.startsWith("commit"))).toEqual(["upsert endpoints a"]);
  expect(events.filter(({ kind }) => kind === "disconnected")).toEqual([]);
  expect(events.filter(({ kind }) => kind === "renewed").length).toBe(1);
});

test("a renewal that istiod refuses leaves the stream as it is, and is tried again", async () => {
  const istiod = await serve(SMALL);
  const { sink, stream, events } = client(istiod.port);
  await until(() => sink.commits.length === 1, "the first commit");
  const answer = istiod.onRequest;
  istiod.onRequest = (on) => on.fail(status.UNAUTHENTICATED, "no");
  stream.renew();
  await until(() => events.some(({ kind }) => kind === "not-renewed"), "the refusal");
  expect(stream.status()).toMatchObject({ connected: true, connections: 1 });
  istiod.onRequest = answer;
  await until(() => stream.status().connections === 2, "the second attempt");
  expect(events.filter(({ kind }) => kind === "disconnected")).toEqual([]);
});

test("a connection that is lost during a renewal is replaced as ever", async () => {
  const istiod = await serve(SMALL);
  const { sink, stream } = client(istiod.port);
  await until(() => sink.commits.length === 1, "the first commit");
  const answer = istiod.onRequest;
  istiod.onRequest = () => {};
  stream.renew();
  await until(() => istiod.streams.length === 2, "the second stream");
  istiod.onRequest = answer;
  istiod.streams[0]?.fail(status.UNAVAILABLE, "closing");
  await until(() => stream.status().connections === 2, "the reconnect");
  expect(istiod.streams.length).toBe(3);
});

test("without a connection there is nothing to renew", async () => {
  const istiod = await serve(SMALL);
  const { stream } = client(istiod.port, { backoff: { first: 10_000, longest: 10_000 } });
  stream.stop();
  stream.renew();
  await pause(50);
  expect(stream.status().connections).toBe(0);
});

test("a clock that is set makes a connection neither old nor young", async () => {
  const { stream } = await synced();
  const now = Date.now();
  try {
    for (const jump of [-365, 365]) {
      setSystemTime(now + jump * 86_400_000);
      const { connectedSince = 0, lastPush = 0 } = stream.status();
      for (const since of [connectedSince, lastPush])
        expect(Math.abs(Date.now() - since)).toBeLessThan(60_000);
    }
  } finally {
    setSystemTime();
  }
});
