import { afterEach, expect, test } from "bun:test";
import { status } from "@grpc/grpc-js";
import {
  RecordingSink,
  ScriptedIstiod,
  type ScriptedStream,
  until,
} from "../../../test/lab/scripted-istiod.ts";
import type { StreamEvent } from "./status.ts";
import { IstiodStream } from "./stream.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

const HEALTH = "type.googleapis.com/istio.v1.HealthInformation";
const entryOf = (stream: ScriptedStream) =>
  stream.requests[0]?.node?.metadata?.fields?.WORKLOAD_ENTRY?.stringValue ?? "";
const groupOf = (stream: ScriptedStream) =>
  stream.requests[0]?.node?.metadata?.fields?.AUTO_REGISTER_GROUP?.stringValue ?? "";

/** With `entries` one that has a controller of WorkloadEntries, else one that reads files: a report kills it. */
async function serve(options: { entries: boolean; port?: number; busy?: number }) {
  const istiod = new ScriptedIstiod();
  let died = false;
  let busy = options.busy ?? 0;
  istiod.onRequest = (stream, request) => {
    if (request.typeUrl === HEALTH && !options.entries) died = true;
    if (stream.requests.length === 1 && entryOf(stream) !== "" && options.entries) {
      if (busy-- > 0) stream.fail(status.UNAVAILABLE, "server is not ready to serve discovery information");
      else
        stream.fail(
          status.UNKNOWN,
          "proxy metadata indicates that it must correspond to an existing WorkloadEntry, " +
            `however WorkloadEntry shop/${entryOf(stream)} is not found`,
        );
      return;
    }
    if (request.responseNonce === "" && request.type)
      stream.send(request.type, { resources: request.type === "names" ? { "": "n" } : { x: "static" } });
  };
  await istiod.start(options.port);
  cleanups.push(() => istiod.stop());
  /** The streams that configuration is served on. */
  const main = () => istiod.streams.filter((stream) => entryOf(stream) === "");
  const reports = (stream = main().at(-1)) =>
    (stream?.requests ?? [])
      .filter(({ typeUrl }) => typeUrl === HEALTH)
      .map(({ errorDetail }) => (errorDetail ? `${errorDetail.code} ${errorDetail.message}` : "healthy"));
  return { istiod, main, reports, died: () => died };
}

function client(port: number) {
  const sink = new RecordingSink();
  const events: StreamEvent[] = [];
  const stream = new IstiodStream({
    istiod: `127.0.0.1:${port}`,
    security: { kind: "plaintext" },
    identity: { ips: ["10.0.0.5"], name: "vm1", namespace: "shop", autoRegisterGroup: "vms" },
    sink,
    on: (event) => events.push(event),
    backoff: { first: 20, longest: 100 },
  });
  cleanups.push(() => stream.stop());
  stream.start();
  return { sink, stream, events };
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

test("health goes out when it is known and when it changes, never first, and again on each connection", async () => {
  const { istiod, main, reports } = await serve({ entries: true });
  const { stream } = client(istiod.port);
  await until(() => stream.status().synced, "the first push");
  expect(reports()).toEqual([]);
  // Nobody needs to be tried out while there is nothing to tell.
  expect(istiod.streams.length).toBe(1);
  stream.report({ healthy: false, message: "HTTP status 503" });
  await until(() => reports().length === 1, "a report");
  stream.report({ healthy: true, message: "" });
  await until(() => reports().length === 2, "another");
  expect(reports()).toEqual(["13 HTTP status 503", "healthy"]);
  expect(stream.status().reported?.healthy).toBe(true);
  expect(istiod.streams.length).toBe(2);
  const [stranger] = istiod.streams.filter((each) => entryOf(each) !== "");
  expect([groupOf(stranger as ScriptedStream), groupOf(main()[0] as ScriptedStream)]).toEqual(["", "vms"]);

  main()[0]?.close();
  await until(() => main().length === 2 && reports().length === 1, "the report on the next connection");
  expect(reports()).toEqual(["healthy"]);
  const types = main()[1]?.requests.map(({ typeUrl }) => typeUrl.split(".").at(-1)) ?? [];
  expect(types.indexOf("Listener")).toBeGreaterThan(0);
  expect(types.indexOf("HealthInformation")).toBeGreaterThan(types.indexOf("Listener"));
});

test("a moved stream has the report, too", async () => {
  const { istiod, main, reports } = await serve({ entries: true });
  const { stream } = client(istiod.port);
  stream.report({ healthy: true, message: "" });
  await until(() => reports().length === 1, "a report");
  stream.renew();
  await until(() => main().length === 2 && reports().length === 1, "the report on the new connection");
  expect(stream.status().connections).toBe(2);
});

test("an istiod without WorkloadEntries gets none, and it is told once for each connection", async () => {
  const { istiod, reports, died } = await serve({ entries: false });
  const { stream, events } = client(istiod.port);
  stream.report({ healthy: false, message: "no" });
  await until(() => stream.status().healthNotTaken !== undefined, "the answer");
  stream.report({ healthy: true, message: "" });
  stream.report({ healthy: false, message: "no" });
  await pause(50);
  expect(died()).toBe(false);
  expect(stream.status().healthNotTaken).toContain("takes no health reports");
  expect(stream.status().reported).toBeUndefined();
  expect(events.filter(({ kind }) => kind === "health-not-taken").length).toBe(1);
  expect(reports()).toEqual([]);
});

test("one that is not ready to say is asked again, and gets nothing before", async () => {
  const { istiod, reports } = await serve({ entries: true, busy: 1 });
  const { stream, events } = client(istiod.port);
  await until(() => stream.status().synced, "the first push");
  stream.report({ healthy: true, message: "" });
  await until(() => stream.status().healthNotTaken !== undefined, "the first answer");
  expect(reports()).toEqual([]);
  expect(events.filter(({ kind }) => kind === "health-not-taken")).toEqual([]);
  await until(() => reports().length === 1, "the report", 8_000);
  expect(stream.status().healthNotTaken).toBeUndefined();
}, 12_000);
