import { expect, test } from "bun:test";
import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { dialTcp, listening } from "../../test/lab/mesh-member.ts";
import { timeLimit } from "./time-limit.ts";

/** Milliseconds. */
const LIMIT = 20;

/** Keeps this process from everything else. */
function beBusy(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

test("what came while the process was busy is read before a limit expires", async () => {
  const server = createServer();
  const accepted = once(server, "connection") as Promise<[Socket]>;
  const client = await dialTcp(await listening(server, "127.0.0.1"));
  const [socket] = await accepted;
  try {
    for (let i = 0; i < 20; i++) {
      const first = Promise.withResolvers<string>();
      const cancel = timeLimit(LIMIT, () => first.resolve("expired"));
      socket.once("data", (chunk) => {
        cancel();
        first.resolve(String(chunk));
      });
      client.write("in time");
      beBusy(2 * LIMIT);
      expect(await first.promise).toBe("in time");
    }
  } finally {
    client.destroy();
    socket.destroy();
    server.close();
  }
});

test("a limit that is taken away never expires, also when its time is over already", async () => {
  let expired = 0;
  const cancel = timeLimit(1, () => expired++);
  const over = new Promise<void>((resolve) => timeLimit(1, resolve));
  beBusy(5);
  cancel();
  await over;
  expect(expired).toBe(0);
});
