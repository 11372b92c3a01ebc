import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AdminError, askAgent } from "./client.ts";
import { AdminServer, BadRequest } from "./server.ts";

const folder = mkdtempSync(join(tmpdir(), "kmesh-admin-"));
const socket = join(folder, "run", "admin.sock");
let server: AdminServer;

beforeAll(async () => {
  server = await AdminServer.listen(socket, {
    "/map": () => ({ map: new Map([["a", 1n]]), big: 2n ** 63n }),
    "/echo": (query) => ({ said: query.get("what") }),
    "/bad": () => {
      throw new BadRequest("what is that?");
    },
    "/broken": () => {
      throw new Error("the map is gone");
    },
  });
});
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
