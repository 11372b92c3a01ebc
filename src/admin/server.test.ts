import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AdminError, askAgent, orderAgent } from "./client.ts";
import { AdminServer, BadRequest, Conflict } from "./server.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-admin-"));
const socket = join(folder, "run", "admin.sock");
let server: AdminServer;

beforeAll(async () => {
  const answers = {
    "/map": () => ({ map: new Map([["a", 1n]]), big: 2n ** 63n }),
    "/echo": (query: URLSearchParams) => ({ said: query.get("what") }),
    "/bad": () => {
      throw new BadRequest("what is that?");
    },
    "/broken": () => {
      throw new Error("the map is gone");
    },
  };
  server = await AdminServer.listen(socket, answers, {
    "/count": async (body, tell) => {
      const { to, fail } = body as { to: number; fail?: string };
      if (fail === "conflict") throw new Conflict("somebody counts already");
      for (let i = 1; i <= to; i++) {
        tell({ i });
        await Bun.sleep(20);
      }
      if (fail === "late") throw new Error("lost count");
      counted = true;
    },
  });
});
let counted = false;
afterAll(() => {
  server.close();
  rmSync(folder, { recursive: true });
});

test("maps and 64-bit numbers arrive as JSON", async () => {
  expect(await askAgent(socket, "/map")).toEqual({ map: { a: 1 }, big: "9223372036854775808" });
});

test("the query arrives decoded", async () => {
  expect(await askAgent(socket, "/echo?what=%5Bfd00%3A%3A1%5D%3A80")).toEqual({ said: "[fd00::1]:80" });
});

test("what goes wrong arrives as an error with its status", async () => {
  const statuses = await Promise.all(
    ["/bad", "/broken", "/toString", "/nothing"].map((path) =>
      askAgent(socket, path).catch((error) =>
        error instanceof AdminError ? [error.status, error.message] : error,
      ),
    ),
  );
  expect(statuses).toEqual([
    [400, "what is that?"],
    [500, "the map is gone"],
    [404, "there is no /toString"],
    [404, "there is no /nothing"],
  ]);
});

test("only the owner may open the socket", () => {
  expect(statSync(socket).mode & 0o777).toBe(0o700);
});

test("nobody there is undefined, not an error", async () => {
  expect(await askAgent(join(folder, "none.sock"), "/map")).toBeUndefined();
});

test("a dead agent's socket, or anything else in its place, is replaced", async () => {
  const path = join(folder, "stale.sock");
  writeFileSync(path, "");
  const replaced = await AdminServer.listen(path, { "/x": () => 1 });
  expect(await askAgent(path, "/x")).toBe(1);
  replaced.close();
  expect(existsSync(path)).toBe(false);
});

test("an agent that hangs is an error, not a wait", async () => {
  const path = join(folder, "hangs.sock");
  const hanging = createServer(() => {});
  await new Promise<void>((resolve) => hanging.listen(path, resolve));
  const answer = await askAgent(path, "/x", 100).catch((error: Error) => error);
  expect(answer).toBeInstanceOf(Error);
  expect(String(answer)).toContain("did not answer within 0.1 s");
  hanging.close();
});

test("an action's lines arrive as they come", async () => {
  const lines: unknown[] = [];
  const times: number[] = [];
  const hear = (line: unknown) => {
    lines.push(line);
    times.push(performance.now());
  };
  expect(await orderAgent(socket, "/count", { to: 5 }, hear, 1_000)).toBe(true);
  expect(lines).toEqual([1, 2, 3, 4, 5].map((i) => ({ i })));
  expect((times.at(-1) ?? 0) - (times[0] ?? 0)).toBeGreaterThan(60);
  lines.length = 0;
  expect(await orderAgent(socket, "/count", { to: 1, fail: "late" }, hear, 1_000)).toBe(true);
  expect(lines).toEqual([{ i: 1 }]);
});

test("an action that is not done is an error with its status", async () => {
  const order = (path: string, body: unknown) =>
    orderAgent(socket, path, body, () => {}, 1_000).catch((error) => [error.status, error.message]);
  expect(await order("/count", { fail: "conflict" })).toEqual([409, "somebody counts already"]);
  expect(await order("/map", {})).toEqual([405, "only GET is answered"]);
  expect(await order("/nothing", {})).toEqual([404, "there is no /nothing"]);
  expect(await order("/count", { long: "x".repeat(70_000) })).toEqual([400, "the body is too long"]);
  expect(await askAgent(socket, "/count").catch((error) => error.status)).toBe(405);
  expect(await orderAgent(join(folder, "none.sock"), "/count", {}, () => {}, 1_000)).toBe(false);
});

test("an action goes on when the client goes", async () => {
  counted = false;
  const client = orderAgent(socket, "/count", { to: 10 }, () => {}, 5).catch(String);
  expect(await client).toContain("said nothing for 0.005 s");
  expect(counted).toBe(false);
  await server.finish();
  for (let i = 0; i < 50 && !counted; i++) await Bun.sleep(20);
  expect(counted).toBe(true);
});

test("a server that was replaced leaves the path to its successor", async () => {
  const path = join(folder, "both.sock");
  const one = await AdminServer.listen(path, { "/x": () => 1 });
  const two = await AdminServer.listen(path, { "/x": () => 2 });
  expect([one.reachable, two.reachable]).toEqual([false, true]);
  expect(await askAgent(path, "/x")).toBe(2);
  one.close();
  expect(await askAgent(path, "/x")).toBe(2);
  two.close();
  expect(existsSync(path)).toBe(false);
});

test("a web site that reaches the socket through a forwarded port is refused", async () => {
  const from = (headers: Record<string, string>) =>
    new Promise<number | undefined>((resolve, reject) => {
      const call = request({ socketPath: socket, path: "/map", headers }, (response) => {
        response.resume();
        resolve(response.statusCode);
      });
      call.on("error", reject);
      call.end();
    });
  expect(await from({ host: "localhost:9000", origin: "http://localhost:9000" })).toBe(200);
  expect(await from({ host: "localhost:9000", origin: "http://evil.example" })).toBe(403);
  expect(await from({ host: "localhost:9000", origin: "null" })).toBe(403);
});
