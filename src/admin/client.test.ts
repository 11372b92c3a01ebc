import { afterAll, afterEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AdminError, askAgent } from "./client.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-client-"));
const socket = join(folder, "admin.sock");
let server: Server | undefined;

afterAll(() => rmSync(folder, { recursive: true, force: true }));
afterEach(async () => {
  await new Promise((resolve) => (server ? server.close(resolve) : resolve(undefined)));
  server = undefined;
  rmSync(socket, { force: true });
});

/** Does `answer` to the first connection and `then` to all others, each when it has heard a request. */
async function listen(answer: (to: Socket) => void, then: (to: Socket) => void = answer): Promise<void> {
  let first = true;
  server = createServer((connection) => {
    const act = first ? answer : then;
    first = false;
    connection.on("error", () => undefined);
    connection.once("data", () => act(connection));
  });
  await new Promise<void>((resolve) => server?.listen(socket, resolve));
}

const whole = (status: string, body: string) => (to: Socket) =>
  to.end(`HTTP/1.1 ${status}\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`);

const deaths: [string, (to: Socket) => void][] = [
  ["before it answers", (to) => to.destroy()],
  ["before it answers, by a reset", (to) => to.resetAndDestroy()],
  [
    "in the middle of its answer",
    (to) => to.write('HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"a":', () => to.destroy()),
  ],
  [
    "between two parts of its answer",
    (to) =>
      to.write('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"a":\r\n', () => to.destroy()),
  ],
];

test("nobody listens", async () => {
  expect(await askAgent(socket, "/status")).toBeUndefined();
});

test.each(deaths)("an agent that dies %s is none", async (_, die) => {
  await listen(die);
  expect(await askAgent(socket, "/status")).toBeUndefined();
});

test.each(deaths)("one that dies %s, and has a successor by then", async (_, die) => {
  await listen(die, whole("200 OK", '{"a":1}'));
  expect(await askAgent(socket, "/status")).toEqual({ a: 1 });
});

test("one that says no has not died", async () => {
  await listen(whole("500 No", '{"error":"why"}'));
  await expect(askAgent(socket, "/status")).rejects.toThrow(AdminError);
});

test("nor has one that is silent", async () => {
  await listen(() => undefined);
  await expect(askAgent(socket, "/status", 100)).rejects.toThrow("did not answer within 0.1 s");
});
