import { afterEach, expect, test } from "bun:test";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { RecordingSink, ScriptedIstiod, until } from "../../../test/lab/scripted-istiod.ts";
import type { StreamEvent } from "./status.ts";
import { IstiodStream, type StreamOptions } from "./stream.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

/** A TCP server whose port is known. */
async function listen(accept: (socket: Socket) => void): Promise<number> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    accept(socket);
  });
  cleanups.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
}

function client(port: number, connection: StreamOptions["connection"] = {}) {
  const sink = new RecordingSink();
  const events: StreamEvent[] = [];
  const stream = new IstiodStream({
    on: (event) => events.push(event),
    istiod: `127.0.0.1:${port}`,
    security: { kind: "plaintext" },
    identity: { ips: ["10.0.0.5"], name: "vm1", namespace: "shop" },
    sink,
    connection,
    backoff: { first: 10, longest: 20 },
  });
  cleanups.push(() => stream.stop());
  stream.start();
  return { sink, stream, events };
}

async function istiod() {
  const server = new ScriptedIstiod();
  server.onRequest = (stream, request) => {
    if (request.responseNonce === "" && request.type)
      stream.send(request.type, { resources: { x: "static" } });
  };
  await server.start();
  cleanups.push(() => server.stop());
  return server;
}

test("a peer that accepts and says nothing is given up after the time to connect", async () => {
  const port = await listen(() => {});
  const { stream } = client(port, { connect: 100 });
  await until(() => stream.status().lastError !== undefined, "giving up");
  expect(stream.status().lastError?.text).toBe(
    `no connection to istiod at 127.0.0.1:${port}: no answer within 0.1 s`,
  );
  expect(stream.status().connections).toBe(0);
});

test("a connection that went silent is noticed by keepalive and replaced", async () => {
  const server = await istiod();
  let silent = false;
  const port = await listen((socket) => {
    const upstream = connect(server.port, "127.0.0.1");
    upstream.on("error", () => {});
    const mute = silent;
    socket.on("data", (bytes) => {
      if (!silent || mute) upstream.write(bytes);
    });
    upstream.on("data", (bytes) => {
      if (!silent || mute) socket.write(bytes);
    });
    cleanups.push(() => upstream.destroy());
  });
  const { sink, stream } = client(port, { keepalive: 100, keepaliveAnswer: 100 });
  await until(() => sink.commits.length === 1, "the first commit");
  sink.calls.length = 0;
  silent = true;
  await until(() => stream.status().connections === 2, "the second connection");
  expect(sink.calls).toEqual([]);
});

test("a connection that istiod wants to end is followed by another before it ends", async () => {
  const server = new ScriptedIstiod();
  server.onRequest = (stream, request) => {
    if (request.responseNonce === "" && request.type)
      stream.send(request.type, { resources: { x: "static" } });
  };
  await server.start(0, undefined, {
    "grpc.max_connection_age_ms": 400,
    "grpc.max_connection_age_grace_ms": 20_000,
  });
  cleanups.push(() => server.stop());
  const { sink, stream, events } = client(server.port);
  await until(() => stream.status().connections === 3, "two moves");
  expect(events.filter(({ kind }) => kind === "disconnected" || kind === "not-renewed")).toEqual([]);
  expect(sink.calls.filter((call) => call.startsWith("remove"))).toEqual([]);
});

test("stopping ends the stream at the server and tries no more", async () => {
  const server = await istiod();
  const { sink, stream } = client(server.port);
  await until(() => sink.commits.length === 1, "the first commit");
  stream.stop();
  expect(stream.status().connected).toBe(false);
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(server.streams.length).toBe(1);
});
