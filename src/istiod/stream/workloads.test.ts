/** The stream in dual-engine mode, against a scripted istiod. */
import { afterEach, expect, test } from "bun:test";
import {
  RecordingSink,
  ScriptedIstiod,
  type ScriptedStream,
  until,
} from "../../../test/lab/scripted-istiod.ts";
import { discovery } from "../discovery.gen.js";
import type { ResourceType } from "./sink.ts";
import { IstiodStream } from "./stream.ts";
import { TYPE_URL } from "./types.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
/** istiod gives versions to services and workloads, not to policies. */
const VERSION = "0123456789abcdef";

function client(port: number) {
  const sink = new RecordingSink();
  const stream = new IstiodStream({
    ...{ istiod: `127.0.0.1:${port}`, security: { kind: "plaintext" }, sink, mode: "dual-engine" },
    identity: { ips: ["10.0.0.5"], name: "vm1", namespace: "shop" },
    backoff: { first: 20, longest: 50 },
  });
  stream.start();
  cleanups.push(() => stream.stop());
  return { sink, stream };
}

async function server(port = 0): Promise<ScriptedIstiod> {
  const istiod = new ScriptedIstiod();
  await istiod.start(port);
  cleanups.push(() => istiod.stop());
  return istiod;
}

/** Sends Address resources with versions. */
function sendAddresses(
  stream: ScriptedStream,
  resources: Record<string, string>,
  removed: string[] = [],
  version = "v1",
): void {
  const typeUrl = TYPE_URL.address;
  stream.sendRaw(
    discovery.DeltaDiscoveryResponse.encode({
      ...{ systemVersionInfo: version, typeUrl, nonce: `${version}-address`, removedResources: removed },
      resources: Object.entries(resources).map(([name, text]) => ({
        ...{ name, version: VERSION, resource: { typeUrl, value: new TextEncoder().encode(text) } },
      })),
    }).finish(),
  );
}

const asked = (istiod: ScriptedIstiod, type: ResourceType) =>
  istiod.last.requests.find((request) => request.type === type && request.responseNonce === "");

test("subscribes to policies, addresses and names; the first push needs both of the former", async () => {
  const istiod = await server();
  const { sink } = client(istiod.port);
  await until(() => istiod.streams[0]?.requests.length === 3, "the requests");
  expect(istiod.last.requests.map(({ type }) => type)).toEqual(["authorization", "address", "names"]);
  expect(istiod.last.requests[0]?.node?.id).toStartWith("sidecar~10.0.0.5~");
  sendAddresses(istiod.last, { "shop/a": "a" });
  istiod.last.send("names", { resources: { "": "names" } });
  await pause(80);
  expect(sink.commits).toEqual([]);
  istiod.last.send("authorization", {});
  await until(() => sink.commits.length === 1, "the commit");
  expect(istiod.last.answers.map(({ type, errorDetail }) => [type, errorDetail?.message])).toEqual([
    ["address", undefined],
    ["names", undefined],
    ["authorization", undefined],
  ]);
});

async function synced(resources: Record<string, string>) {
  const istiod = await server();
  const { sink, stream } = client(istiod.port);
  await until(() => istiod.streams[0]?.requests.length === 3, "the requests");
  istiod.last.send("authorization", { resources: { "shop/p": "p", "shop/q": "q" } });
  sendAddresses(istiod.last, resources);
  istiod.last.send("names", { resources: { "": "names" } });
  await until(() => sink.commits.length === 1, "the first commit", 15_000);
  sink.calls.length = 0;
  return { istiod, sink, stream };
}

test("a policy that comes a moment after the workload that names it is published with it", async () => {
  const { istiod, sink } = await synced({ "shop/a": "a" });
  sendAddresses(istiod.last, { vm: "names shop/r" }, [], "v2");
  await pause(8);
  istiod.last.send("authorization", { version: "v2", resources: { "shop/r": "r" } });
  await until(() => sink.commits.length === 2, "the commit");
  expect(sink.calls).toEqual(["upsert address vm", "upsert authorization shop/r", "commit v2"]);
  // A name that never was is no change.
  istiod.last.send("authorization", { version: "v3", removed: ["shop/audit"] });
  await pause(60);
  expect(sink.commits.length).toBe(2);
});

test("a push whose workload names policies that are not there waits for them, however long they take", async () => {
  const { istiod, sink } = await synced({ "shop/a": "a" });
  sink.awaitsPolicies = true;
  sendAddresses(istiod.last, { vm: "names shop/r" }, [], "v2");
  await pause(150);
  sendAddresses(istiod.last, { other: "o" }, [], "v3");
  await pause(150);
  expect(sink.commits.length).toBe(1);
  istiod.last.send("authorization", { version: "v3", resources: { "shop/r": "r" } });
  await until(() => sink.commits.length === 2, "the commit");
  expect(sink.calls.at(-1)).toBe("commit v3");
});

async function reconnected(istiod: ScriptedIstiod, stream: IstiodStream): Promise<ScriptedIstiod> {
  const { port } = istiod;
  istiod.stop();
  await until(() => !stream.status().connected, "the loss");
  const again = await server(port);
  await until(() => again.streams[0]?.requests.length === 3, "the requests", 15_000);
  return again;
}

test("a reconnect tells what is held; what istiod omits then stays, what it lists as removed goes", async () => {
  const { istiod, sink, stream } = await synced({ "shop/a": "a", "shop/b": "b", w: "w" });
  const again = await reconnected(istiod, stream);
  expect(asked(again, "address")?.initialResourceVersions).toEqual({
    "shop/a": VERSION,
    "shop/b": VERSION,
    w: VERSION,
  });
  sendAddresses(again.last, {}, ["shop/b"], "w1");
  // Policies have no version: all are sent again, and what is missing is gone.
  again.last.send("authorization", { version: "w1", resources: { "shop/p": "p" } });
  await until(() => sink.commits.length === 2, "the commit");
  expect(sink.calls.sort()).toEqual(["commit w1", "remove address shop/b", "remove authorization shop/q"]);
});

test("more names than istiod takes in a request: none is told, all is compared, and what is missing is gone", async () => {
  const resources: Record<string, string> = {};
  for (let i = 0; i < 40_000; i++)
    resources[`Kubernetes//Pod/a-namespace-with-a-name/a-workload-with-a-longer-name-${i}`] = "w";
  const { istiod, sink, stream } = await synced(resources);
  const again = await reconnected(istiod, stream);
  expect(asked(again, "address")?.initialResourceVersions).toEqual({});
  const [gone = ""] = Object.keys(resources);
  delete resources[gone];
  again.last.send("authorization", { version: "w1", resources: { "shop/p": "p", "shop/q": "q" } });
  sendAddresses(again.last, resources, [], "w1");
  await until(() => sink.commits.length === 2, "the commit", 15_000);
  expect(sink.calls).toEqual([`remove address ${gone}`, "commit w1"]);
  expect(stream.status().types.address).toMatchObject({ resources: 39_999, unchanged: 39_999 });
});
