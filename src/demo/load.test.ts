import { afterAll, expect, test } from "bun:test";
import { createServer, type Server, type Socket } from "node:net";
import { eventually } from "../../test/lab/process.ts";
import { spreadBetween } from "./ledger.ts";
import { Load, type LoadOptions } from "./load.ts";
import { startUpstream } from "./upstream.ts";

const servers: Server[] = [];
afterAll(() => {
  for (const server of servers) server.close();
});

function portOf(server: Server): number {
  servers.push(server);
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

const options = (port: number): LoadOptions => ({
  address: "127.0.0.1",
  port,
  rate: 200,
  longLived: 5,
  beat: 20,
  patience: 400,
});

test("a healthy upstream: all are answered, none fails, none is cut", async () => {
  // No time limit matters here: nothing may be lost, also on a busy machine.
  const load = new Load({ ...options(portOf(await startUpstream("a", "127.0.0.1", 0))), patience: 4_000 });
  const began = performance.now();
  load.start();
  await eventually("connections and beats", () => load.ledger.made >= 80 && load.ledger.answers > 50);
  const ledger = await load.stop();
  expect(ledger.made).toBeGreaterThanOrEqual(80);
  expect(ledger.made).toBeLessThanOrEqual((performance.now() - began) / 5 + 1);
  expect(ledger.byUpstream).toEqual({ a: ledger.made });
  expect(ledger.answers).toBeGreaterThan(50);
  expect([ledger.failed, ledger.cut, ledger.wrongPeer, ledger.reasons]).toEqual([0, 0, 0, {}]);
});

test("nobody listens: every one fails, and says why", async () => {
  const server = await startUpstream("a", "127.0.0.1", 0);
  const port = portOf(server);
  await new Promise((resolve) => server.close(resolve));
  const load = new Load(options(port));
  load.start();
  await Bun.sleep(200);
  const ledger = await load.stop();
  expect(ledger.made).toBe(0);
  expect(ledger.failed).toBeGreaterThan(20);
  expect(Object.keys(ledger.reasons).sort()).toEqual(["ECONNREFUSED", "long-lived: ECONNREFUSED"]);
});

test("a server that resets cuts the long-lived ones, one that is silent does too", async () => {
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.on("error", () => {});
    socket.on("data", () => {});
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const load = new Load({ ...options(portOf(server)), rate: 0, longLived: 2 });
  load.start();
  await Bun.sleep(100);
  sockets[0]?.destroy();
  await Bun.sleep(700);
  const ledger = await load.stop();
  expect(ledger.cut).toBe(2);
  expect(ledger.open).toBe(0);
  for (const socket of sockets) socket.destroy();
});

test("the spread between two counts", () => {
  const count = (byUpstream: Record<string, number>) => ({ ...new Load(options(1)).ledger, byUpstream });
  expect(spreadBetween(count({ a: 100 }), count({ a: 190, b: 10 }), ["a", "b", "c"])).toEqual([
    { upstream: "a", connections: 90, share: 0.9 },
    { upstream: "b", connections: 10, share: 0.1 },
    { upstream: "c", connections: 0, share: 0 },
  ]);
});
