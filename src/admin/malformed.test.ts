/** Whatever arrives at the admin socket gets an answer in JSON, and the server goes on. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Random } from "../../test/lab/random.ts";
import { askAgent, orderAgent } from "./client.ts";
import { AdminServer } from "./server.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-malformed-"));
const socket = join(folder, "admin.sock");
let server: AdminServer;
const faults: unknown[] = [];
const onFault = (error: unknown) => faults.push(error);

beforeAll(async () => {
  for (const event of ["uncaughtException", "unhandledRejection"] as const) process.on(event, onFault);
  server = await AdminServer.listen(
    socket,
    { "/x": () => ({ x: 1 }) },
    { "/do": async (body, tell) => tell({ did: body }) },
  );
});
afterAll(() => {
  for (const event of ["uncaughtException", "unhandledRejection"] as const) process.off(event, onFault);
  server.close();
  rmSync(folder, { recursive: true });
});

/** What the server sends to these bytes before it closes, or until it has sent one whole answer. */
function exchange(bytes: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    const client = connect(socket);
    const timer = setTimeout(() => {
      client.destroy();
      resolve(text === "" ? "SILENCE" : text);
    }, 2_000);
    const done = () => {
      clearTimeout(timer);
      client.destroy();
      resolve(text);
    };
    client.on("data", (part) => {
      text += part.toString("latin1");
      if (bodyOf(text) !== undefined) done();
    });
    client.on("close", done);
    client.on("error", (error) => ("code" in error && text !== "" ? done() : reject(error)));
    client.write(bytes, "latin1");
    // The server sees the end of what can't become a request any more.
    client.end();
  });
}

/** The JSON of the first answer; undefined while it is not whole. */
function bodyOf(all: string): unknown {
  const next = all.indexOf("HTTP/1.1 ", 1);
  const text = next < 0 ? all : all.slice(0, next);
  const at = text.indexOf("\r\n\r\n");
  if (at < 0) return undefined;
  const parts = /transfer-encoding: chunked/i.test(text.slice(0, at))
    ? text
        .slice(at + 4)
        .split(/(?:^|\r\n)[0-9a-f]+\r\n/)
        .join("")
    : text.slice(at + 4);
  try {
    return JSON.parse(parts.trim());
  } catch {
    return undefined;
  }
}

const statusOf = (text: string) => Number(/^HTTP\/1\.1 (\d{3}) /.exec(text)?.[1] ?? 0);

const HOST = "\r\nHost: kmesh\r\n";
const MALFORMED: [string, number][] = [
  [`GET // HTTP/1.1${HOST}\r\n`, 404],
  [`GET //x HTTP/1.1${HOST}\r\n`, 404],
  [`GET ///?a=%zz HTTP/1.1${HOST}\r\n`, 404],
  [`GET /\\ HTTP/1.1${HOST}\r\n`, 404],
  [`GET /%zz HTTP/1.1${HOST}\r\n`, 404],
  ["GET /none HTTP/1.1\r\n\r\n", 404],
  [`GET http://[ HTTP/1.1${HOST}\r\n`, 400],
  [`GET http://a/x HTTP/1.1${HOST}\r\n`, 400],
  [`OPTIONS * HTTP/1.1${HOST}\r\n`, 400],
  [`GET x HTTP/1.1${HOST}\r\n`, 400],
  [`CONNECT a:80 HTTP/1.1${HOST}\r\n`, 405],
  [`GET /x HTTP/1.1${HOST}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n`, 400],
  [`POST /do HTTP/1.1${HOST}Expect: a miracle\r\nContent-Length: 2\r\n\r\n{}`, 417],
  [`DELETE /x HTTP/1.1${HOST}\r\n`, 405],
  [`POST /x HTTP/1.1${HOST}Content-Length: 2\r\n\r\n{}`, 405],
  [`GET /do HTTP/1.1${HOST}\r\n`, 405],
  [`POST /do HTTP/1.1${HOST}Content-Length: 1\r\n\r\n{`, 400],
  [`POST /do HTTP/1.1${HOST}Content-Length: x\r\n\r\n{}`, 400],
  [`POST /do HTTP/1.1${HOST}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}`, 400],
  [`POST /do HTTP/1.1${HOST}Transfer-Encoding: chunked\r\n\r\nzz\r\n`, 400],
  [`FETCH /x HTTP/1.1${HOST}\r\n`, 400],
  [`GET /x HTTP/9.9${HOST}\r\n`, 400],
  ["GET /x HTTP/1.1\r\nHost kmesh\r\n\r\n", 400],
  ["\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400],
  [`GET /${"x".repeat(100_000)} HTTP/1.1${HOST}\r\n`, 431],
  [`GET /x HTTP/1.1${HOST}X: ${"x".repeat(200_000)}\r\n\r\n`, 431],
];

for (const [bytes, status] of MALFORMED) {
  test(`${status} for ${JSON.stringify(bytes.slice(0, 50))}`, async () => {
    const text = await exchange(bytes);
    expect([statusOf(text), bodyOf(text)]).toEqual([status, { error: expect.any(String) }]);
    expect(text.slice(0, text.indexOf("\r\n\r\n")).toLowerCase()).toContain("content-type: application/json");
  });
}

test("requests that were changed at random are answered, and the server goes on", async () => {
  const random = new Random(20_261_129);
  const seeds = [...MALFORMED.map(([bytes]) => bytes.slice(0, 300)), `GET /x HTTP/1.1${HOST}\r\n`];
  for (let i = 0; i < 400; i++) {
    const bytes = [...(seeds[random.below(seeds.length)] ?? "")];
    for (let n = 1 + random.below(4); n > 0; n--)
      bytes.splice(random.below(bytes.length + 1), random.below(3), String.fromCharCode(random.below(256)));
    // Without an end the server waits for the rest, as it should.
    const text = await exchange(`${bytes.join("")}\r\n\r\n\r\n`);
    const status = statusOf(text);
    expect([bytes.join(""), status === 200 || (status >= 400 && status < 500), bodyOf(text)]).toEqual([
      bytes.join(""),
      true,
      expect.anything(),
    ]);
  }
  expect(await askAgent(socket, "/x")).toEqual({ x: 1 });
}, 30_000);

test("a client that goes away in the middle of its request, or of the answer", async () => {
  for (const bytes of [
    "GET /x HT",
    `POST /do HTTP/1.1${HOST}Content-Length: 100\r\n\r\n{`,
    `GET /x HTTP/1.1${HOST}\r\n`,
  ]) {
    await new Promise<void>((resolve) => {
      const client = connect(socket, () => {
        client.write(bytes, () => {
          client.destroy();
          resolve();
        });
      });
    });
  }
  await Bun.sleep(50);
  expect(await askAgent(socket, "/x")).toEqual({ x: 1 });
  expect(faults).toEqual([]);
});

test("the socket of a group: mode 0770, its group, and no POST", async () => {
  const path = join(folder, "status.sock");
  const readers = await AdminServer.listen(path, { "/x": () => ({ x: 1 }) }, {}, 12_345);
  const { mode, gid } = statSync(path);
  expect([mode & 0o777, gid]).toEqual([0o770, 12_345]);
  expect(await askAgent(path, "/x")).toEqual({ x: 1 });
  const refused = await orderAgent(path, "/do", {}, () => {}, 1_000).catch((error) => error.status);
  expect(refused).toBe(404);
  readers.close();
});
