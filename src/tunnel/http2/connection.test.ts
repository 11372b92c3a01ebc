import { afterEach, expect, test } from "bun:test";
import { once } from "node:events";
import http2 from "node:http2";
import { connect, createServer, type Server, type Socket } from "node:net";
import { eventually } from "../../../test/lab/process.ts";
import { Budget } from "./budget.ts";
import { Http2Connection } from "./connection.ts";
import {
  ERROR,
  encodeFrame,
  encodeNumber,
  encodeSettings,
  FLAG,
  FRAME,
  FrameReader,
  PREFACE,
} from "./frames.ts";
import { encodeHeaders, type Headers } from "./hpack.ts";
import type { ConnectStream } from "./stream.ts";

const cleanup: (() => void)[] = [];
afterEach(() => {
  for (const end of cleanup.splice(0)) end();
});

const CONNECT: Headers = [
  [":method", "CONNECT"],
  [":authority", "10.0.0.1:80"],
];

/** A server whose streams go to `request`. */
async function serve(
  request: (stream: ConnectStream, headers: Headers) => void,
  budget = new Budget(64 * 1024 * 1024),
  pingEvery?: number,
) {
  const ended: (Error | undefined)[] = [];
  const connections: Http2Connection[] = [];
  const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
    const closed = (reason: Error | undefined) => ended.push(reason);
    connections.push(
      new Http2Connection(socket, {
        role: "server",
        budget,
        request,
        closed,
        ...(pingEvery && { pingEvery }),
      }),
    );
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  cleanup.push(() => {
    server.close();
    for (const connection of connections) connection.destroy();
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return { port: address.port, ended, connections, budget };
}

async function open(port: number, budget = new Budget(64 * 1024 * 1024)) {
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  await once(socket, "connect");
  const connection = new Http2Connection(socket, { role: "client", budget });
  cleanup.push(() => connection.destroy());
  return connection;
}

function echo(stream: ConnectStream) {
  stream.respond(200);
  stream.pipe(stream);
}

async function collect(stream: ConnectStream): Promise<number> {
  let bytes = 0;
  for await (const chunk of stream) bytes += (chunk as Buffer).length;
  return bytes;
}

/** Sends `size` bytes of zeros as the reader takes them, then ends. */
function pour(stream: ConnectStream, size: number) {
  const block = Buffer.alloc(64 * 1024);
  let left = size;
  const more = () => {
    while (left > 0 && !stream.destroyed) {
      left -= block.length;
      if (!stream.write(block)) {
        stream.once("drain", more);
        return;
      }
    }
    if (left <= 0) stream.end();
  };
  more();
}

test("a tunnel carries 32 MB there and back, half-closes, and leaves nothing behind", async () => {
  const { port, connections, budget } = await serve(echo);
  const client = await open(port);
  const stream = client.connect(CONNECT);
  expect(await stream.response).toEqual([[":status", "200"]]);
  const size = 32 * 1024 * 1024;
  pour(stream, size);
  expect(await collect(stream)).toBe(size);
  await Bun.sleep(20);
  expect([client.streams, connections[0]?.streams, budget.used]).toEqual([0, 0, 0]);
});

test("three downloads that nobody reads neither stall a fourth stream nor grow past their windows", async () => {
  const { port } = await serve((stream, headers) => {
    if (headers.some(([name]) => name === "bulk")) {
      stream.respond(200);
      pour(stream, 64 * 1024 * 1024);
    } else echo(stream);
  });
  const budget = new Budget(64 * 1024 * 1024);
  const client = await open(port, budget);
  const unread = [1, 2, 3].map(() => client.connect([...CONNECT, ["bulk", "1"]]));
  for (const stream of unread) stream.on("error", () => {});
  await Promise.all(unread.map((stream) => stream.response));
  await Bun.sleep(100);
  for (let i = 0; i < 20; i++) {
    const small = client.connect(CONNECT);
    await small.response;
    small.end("ping");
    expect(await collect(small)).toBe(4);
  }
  expect(budget.used).toBeLessThanOrEqual(3 * 64 * 1024);
  expect(budget.used).toBeGreaterThan(0);
  // The unread ones are whole when they are read at last.
  expect(await Promise.all(unread.map(collect))).toEqual(Array(3).fill(64 * 1024 * 1024));
  expect(budget.used).toBe(0);
});

test("when the budget is used up, the streams that hold the most are reset, and no other one waits", async () => {
  const { port } = await serve((stream, headers) => {
    if (!headers.some(([name]) => name === "bulk")) return echo(stream);
    stream.on("error", () => {});
    stream.respond(200);
    pour(stream, 8 * 1024 * 1024);
  });
  const shed: number[] = [];
  const budget = new Budget(512 * 1024, (bytes) => shed.push(bytes));
  const clients = await Promise.all([1, 2].map(() => open(port, budget)));
  const unread = clients.flatMap((client) =>
    Array.from({ length: 10 }, () => client.connect([...CONNECT, ["bulk", "1"]])),
  );
  const errors: unknown[] = [];
  for (const stream of unread) stream.on("error", (error) => errors.push(error));
  await eventually("a stream is reset", () => errors.length > 0);
  expect(budget.used).toBeLessThanOrEqual(512 * 1024);
  expect(errors.length).toBe(shed.length);
  expect(shed.length).toBeGreaterThan(0);
  expect(errors[0]).toMatchObject({ code: ERROR.enhanceYourCalm });
  for (const client of clients) {
    const small = client.connect(CONNECT);
    await small.response;
    small.end("ping");
    expect(await collect(small)).toBe(4);
  }
  // Those that are left are whole when they are read at last.
  const left = unread.filter((stream) => !stream.destroyed);
  expect(await Promise.all(left.map(collect))).toEqual(left.map(() => 8 * 1024 * 1024));
  expect(budget.used).toBe(0);
});

test("a reset reaches the other side, both ways", async () => {
  const seen: ConnectStream[] = [];
  const { port } = await serve((stream) => {
    stream.respond(200);
    seen.push(stream);
  });
  const client = await open(port);
  const first = client.connect(CONNECT);
  await first.response;
  first.reset(ERROR.cancel);
  const [cancelled] = await once(seen[0] as ConnectStream, "error");
  expect(cancelled).toMatchObject({ code: ERROR.cancel });
  const second = client.connect(CONNECT);
  await second.response;
  seen[1]?.reset(ERROR.connect);
  const [error] = await once(second, "error");
  expect(error).toMatchObject({ code: ERROR.connect });
});

for (const code of [ERROR.none, ERROR.cancel])
  test(`what a peer has sent before it resets with code ${code} is read whole; then a write fails`, async () => {
    let line: Socket | undefined;
    const server = createServer((socket) => {
      line = socket;
      socket.on("error", () => {});
      socket.resume();
      const answer = encodeFrame(FRAME.headers, FLAG.endHeaders, 1, encodeHeaders([[":status", "200"]]));
      socket.write(Buffer.concat([encodeSettings([]), answer]));
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    cleanup.push(
      () => server.close(),
      () => line?.destroy(),
    );
    const client = await open((server.address() as { port: number }).port);
    const stream = client.connect(CONNECT);
    await stream.response;
    // More than the peer's window takes: the rest waits.
    const refused = once(stream, "error");
    stream.write(Buffer.alloc(256 << 10));
    line?.write(
      Buffer.concat([
        encodeFrame(FRAME.data, 0, 1, Buffer.alloc(16_000)),
        encodeFrame(FRAME.data, FLAG.endStream, 1, Buffer.alloc(16_000)),
        encodeNumber(FRAME.rstStream, 1, code),
      ]),
    );
    while (client.streams > 0) await Bun.sleep(5);
    expect(stream.destroyed).toBe(false);
    let bytes = 0;
    stream.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
    });
    expect((await refused)[0]).toMatchObject({ code });
    expect([bytes, stream.readableEnded, client.ended]).toEqual([32_000, true, false]);
  });

test("GOAWAY lets streams end, refuses no request that was under way, and then closes", async () => {
  const { port, connections, ended } = await serve(echo);
  const client = await open(port);
  const stream = client.connect(CONNECT);
  await stream.response;
  connections[0]?.drain();
  await Bun.sleep(50);
  expect(client.usable).toBe(false);
  await Bun.sleep(1_100);
  stream.end("still here");
  expect(await collect(stream)).toBe(10);
  await Bun.sleep(50);
  expect(client.ended).toBe(true);
  expect(ended).toEqual([undefined]);
});

test("node:http2 as the client and as the server understands us", async () => {
  const { port } = await serve(echo);
  const session = http2.connect(`http://127.0.0.1:${port}`);
  cleanup.push(() => session.destroy());
  const request = session.request({ ":method": "CONNECT", ":authority": "10.0.0.1:80", baggage: "a=b" });
  const [headers] = await once(request, "response");
  expect((headers as Record<string, unknown>)[":status"]).toBe(200);
  request.end("hello");
  let text = "";
  for await (const chunk of request) text += chunk;
  expect(text).toBe("hello");

  const peer = http2.createServer();
  peer.on("stream", (stream: http2.ServerHttp2Stream) => {
    stream.respond({ ":status": 200, "x-long": "y".repeat(9_000) });
    stream.pipe(stream);
  });
  peer.listen(0, "127.0.0.1");
  await once(peer, "listening");
  cleanup.push(() => peer.close());
  const client = await open((peer.address() as { port: number }).port);
  const stream = client.connect(CONNECT);
  expect((await stream.response)[0]).toEqual([":status", "200"]);
  pour(stream, 4 * 1024 * 1024);
  expect(await collect(stream)).toBe(4 * 1024 * 1024);
});

/** A client of bare frames. Gives the code of the GOAWAY that the server answers with, or undefined when the line stays open. */
async function abuse(port: number, bytes: Buffer[], patience = 10_000): Promise<number | undefined> {
  const socket: Socket = connect({ port, host: "127.0.0.1" });
  cleanup.push(() => socket.destroy());
  let code: number | undefined;
  const nothing = () => {};
  const reader = new FrameReader(
    {
      frame(type, _flags, _stream, payload) {
        if (type === FRAME.goaway) code = payload.readUInt32BE(4);
      },
      headers: nothing,
      data: nothing,
    },
    false,
  );
  socket.on("data", (chunk: Buffer) => reader.push(chunk));
  socket.on("error", nothing);
  socket.write(Buffer.concat(bytes));
  await Promise.race([
    once(socket, "end").catch(nothing),
    once(socket, "close").catch(nothing),
    Bun.sleep(patience),
  ]);
  return code;
}

test("abuse ends the connection, and only that one", async () => {
  let streams = 0;
  const { port, ended } = await serve((stream) => {
    streams++;
    // An app that has to be connected to first.
    setImmediate(echo, stream);
  });
  const begin = [PREFACE, encodeSettings([])];
  const headers = (id: number, end = 0) =>
    encodeFrame(FRAME.headers, FLAG.endHeaders | end, id, encodeHeaders(CONNECT));
  const innocent = await open(port);
  const kept = innocent.connect(CONNECT);
  await kept.response;
  const rapid = Array.from({ length: 1_100 }, (_, i) => [
    headers(2 * i + 1),
    encodeNumber(FRAME.rstStream, 2 * i + 1, 8),
  ]);
  expect(await abuse(port, [...begin, ...rapid.flat()])).toBe(ERROR.enhanceYourCalm);
  expect(
    await abuse(port, [...begin, ...Array(1_100).fill(encodeFrame(FRAME.ping, 0, 0, Buffer.alloc(8)))]),
  ).toBe(ERROR.enhanceYourCalm);
  expect(await abuse(port, [...begin, ...Array(1_100).fill(encodeSettings([]))])).toBe(ERROR.enhanceYourCalm);
  expect(
    await abuse(port, [
      ...begin,
      headers(1),
      ...Array(1_100).fill(encodeFrame(FRAME.data, 0, 1, Buffer.alloc(0))),
    ]),
  ).toBe(ERROR.enhanceYourCalm);
  expect(await abuse(port, [...begin, encodeFrame(FRAME.data, 0, 1, Buffer.alloc(1))])).toBe(ERROR.protocol);
  expect(await abuse(port, [...begin, encodeFrame(FRAME.rstStream, 0, 5, Buffer.alloc(4))])).toBe(
    ERROR.protocol,
  );
  expect(await abuse(port, [...begin, encodeNumber(FRAME.windowUpdate, 0, 0)])).toBe(ERROR.protocol);
  expect(await abuse(port, [...begin, encodeNumber(FRAME.windowUpdate, 0, 2 ** 31 - 1)])).toBe(
    ERROR.flowControl,
  );
  expect(
    await abuse(port, [...begin, encodeFrame(FRAME.headers, FLAG.endHeaders, 1, Buffer.from([0xff, 0xff]))]),
  ).toBe(ERROR.compression);
  expect(await abuse(port, [PREFACE, encodeSettings([[4, 2 ** 31]])])).toBe(ERROR.flowControl);
  // The 101st stream is refused, the connection goes on.
  const before = streams;
  expect(
    await abuse(port, [...begin, ...Array.from({ length: 130 }, (_, i) => headers(2 * i + 1))], 200),
  ).toBeUndefined();
  expect(streams - before).toBe(100);
  expect(ended.filter((reason) => reason !== undefined).length).toBeGreaterThanOrEqual(10);
  kept.end("well");
  expect(await collect(kept)).toBe(4);
});

test("what ordinary streams leave behind is no abuse: resets of answered ones, refusals, late frames", async () => {
  const count = 1_500;
  const { port, ended, connections } = await serve((stream, headers) => {
    if (headers.some(([name]) => name === "refuse")) return stream.respond(503, true);
    stream.on("error", () => {});
    echo(stream);
  });
  const client = await open(port);
  const kept = client.connect(CONNECT);
  await kept.response;
  for (let i = 0; i < count; i++) {
    const refused = client.connect([...CONNECT, ["refuse", "1"]]);
    refused.on("error", () => {});
    const cut = client.connect(CONNECT);
    cut.on("error", () => {});
    await Promise.all([refused.response, cut.response]);
    refused.reset(ERROR.cancel);
    cut.reset(ERROR.cancel);
  }
  kept.end("well");
  expect(await collect(kept)).toBe(4);
  expect([ended, connections[0]?.ended, client.ended]).toEqual([[], false, false]);
  // A peer whose WINDOW_UPDATE for each stream comes when that has ended.
  const frames = Array.from({ length: count }, (_, i) => [
    encodeFrame(FRAME.headers, FLAG.endHeaders, 2 * i + 1, encodeHeaders(CONNECT)),
    encodeFrame(FRAME.data, FLAG.endStream, 2 * i + 1, Buffer.from("x")),
  ]);
  const socket = connect({ port, host: "127.0.0.1" });
  cleanup.push(() => socket.destroy());
  let ends = 0;
  let goaway = false;
  const reader = new FrameReader(
    {
      frame: (type) => {
        goaway ||= type === FRAME.goaway;
      },
      headers: () => {},
      data: (stream, _bytes, _window, end) => {
        if (!end) return;
        ends++;
        socket.write(encodeNumber(FRAME.windowUpdate, stream, 1));
        const next = frames.shift();
        if (next) socket.write(Buffer.concat(next));
      },
    },
    false,
  );
  socket.on("data", (chunk: Buffer) => reader.push(chunk));
  socket.write(Buffer.concat([PREFACE, encodeSettings([]), ...(frames.shift() ?? [])]));
  await eventually("the end of each stream", () => goaway || ends === count);
  expect([goaway, ends]).toEqual([false, count]);
});

test("bytes that wait for a reader keep no chunk that is much larger, however small they are", async () => {
  const { port } = await serve((stream) => stream.respond(200));
  const stream = (await open(port)).connect(CONNECT);
  stream.on("error", () => {});
  await stream.response;
  const chunk = Buffer.alloc(64 * 1024, "x");
  for (let i = 0; i < 60_000; i++) expect(stream.receive(chunk.subarray(i, i + 1), 1, false)).toBe(true);
  expect(stream.held).toBeGreaterThan(59_000);
  const pieces: Buffer[] = [];
  stream.on("data", (piece: Buffer) => pieces.push(piece));
  await eventually("all of them", () => Buffer.concat(pieces).length === 60_000);
  expect(pieces.length).toBeLessThan(20);
  for (const piece of pieces) expect(piece.buffer.byteLength).toBeLessThanOrEqual(8 * 1024);
  expect(Buffer.concat(pieces).equals(chunk.subarray(0, 60_000))).toBe(true);
});

test("a peer that opens no window gets no bytes and holds none, and stalls nobody else", async () => {
  const streams: ConnectStream[] = [];
  let sent = 0;
  const { port, budget } = await serve((stream, headers) => {
    if (headers.some(([name]) => name === "echo")) {
      echo(stream);
      return;
    }
    streams.push(stream);
    stream.respond(200);
    pour(stream, 16 << 20);
  });
  const starving = connect({ port, host: "127.0.0.1" });
  cleanup.push(() => starving.destroy());
  const nothing = () => {};
  const reader = new FrameReader(
    {
      frame: nothing,
      headers: nothing,
      data: (_stream, bytes) => {
        sent += bytes.length;
      },
    },
    false,
  );
  starving.on("data", (chunk: Buffer) => reader.push(chunk));
  starving.on("error", nothing);
  // INITIAL_WINDOW_SIZE 0.
  starving.write(Buffer.concat([PREFACE, encodeSettings([[4, 0]])]));
  for (let i = 0; i < 100; i++)
    starving.write(encodeFrame(FRAME.headers, FLAG.endHeaders, 2 * i + 1, encodeHeaders(CONNECT)));
  while (streams.length < 100) await Bun.sleep(5);
  // One byte at a time, to one of them.
  for (let i = 0; i < 50; i++) starving.write(encodeNumber(FRAME.windowUpdate, 1, 1));
  const neighbour = (await open(port)).connect([...CONNECT, ["echo", "1"]]);
  neighbour.end(Buffer.alloc(1 << 20));
  expect(await collect(neighbour)).toBe(1 << 20);
  while (sent < 50) await Bun.sleep(5);
  expect(sent).toBe(50);
  // What each holds is one write of the app's, and what the stream takes ahead.
  for (const { writableLength } of streams) expect(writableLength).toBeLessThanOrEqual(128 << 10);
  expect(budget.used).toBe(0);
});

test("window updates that let no byte flow end the connection", async () => {
  const { port } = await serve((stream) => {
    stream.respond(200);
    pour(stream, 1 << 20);
  });
  const head = encodeFrame(FRAME.headers, FLAG.endHeaders, 1, encodeHeaders(CONNECT));
  const begin = [PREFACE, encodeSettings([[4, 0]]), head];
  const updates = (id: number, count: number) => Array(count).fill(encodeNumber(FRAME.windowUpdate, id, 1));
  expect(await abuse(port, [...begin, ...updates(0, 900)], 200)).toBeUndefined();
  expect(await abuse(port, [...begin, ...updates(0, 1_100)])).toBe(ERROR.enhanceYourCalm);
  // Small, but each lets a byte flow.
  expect(await abuse(port, [...begin, ...updates(1, 3_000)], 200)).toBeUndefined();
});

test("more than the stream's window resets the stream alone", async () => {
  const { port, budget } = await serve((stream) => stream.respond(200));
  const bulk = Array.from({ length: 40 }, () => encodeFrame(FRAME.data, 0, 1, Buffer.alloc(16_000)));
  const head = encodeFrame(FRAME.headers, FLAG.endHeaders, 1, encodeHeaders(CONNECT));
  expect(await abuse(port, [PREFACE, encodeSettings([]), head, ...bulk], 200)).toBeUndefined();
  expect(budget.used).toBe(0);
});

test("a peer that is gone without a word is found out by PING", async () => {
  const { port, ended } = await serve(echo, new Budget(1e6), 50);
  const socket = connect({ port, host: "127.0.0.1" });
  cleanup.push(() => socket.destroy());
  socket.on("error", () => {});
  socket.write(Buffer.concat([PREFACE, encodeSettings([])]));
  await eventually("the end of the first connection", () => ended.length > 0);
  expect(ended.map(String)).toEqual(["Error: the peer answers no PING"]);
  const silent = connect({ port, host: "127.0.0.1" });
  cleanup.push(() => silent.destroy());
  await eventually("the end of the second one", () => ended.length > 1);
  expect(ended.map(String)[1]).toBe("Error: the peer sent no SETTINGS");
});
