import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import http, { type IncomingMessage, type ServerResponse } from "node:http";
import https from "node:https";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Server as GrpcServer, ServerCredentials, type sendUnaryData } from "@grpc/grpc-js";
import { Authority } from "../../test/lab/authority.ts";
import { type Answer, check } from "./check.ts";
import { parseProbe } from "./probe.ts";

let folder = "";
const cleanups: (() => void)[] = [];
/** What the HTTP servers were asked last. */
let asked: IncomingMessage | undefined;
let ports = { http: 0, https: 0, tcp: 0, mute: 0, closed: 0, grpc: 0 };

function answer(request: IncomingMessage, response: ServerResponse): void {
  asked = request;
  const status = Number(/^\/(\d+)/.exec(request.url ?? "")?.[1] ?? 200);
  if (request.url === "/never") return;
  response.writeHead(status, status === 302 ? { location: "/500" } : {});
  // More than anybody wants to read.
  response.end("x".repeat(100_000));
}

async function listen(server: Server | http.Server | https.Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  cleanups.push(() => server.close());
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : 0;
}

async function grpcServer(): Promise<number> {
  const server = new GrpcServer();
  const plain = { requestStream: false, responseStream: false } as const;
  const same = { requestSerialize: (b: Buffer) => b, requestDeserialize: (b: Buffer) => b };
  const path = "/grpc.health.v1.Health/Check";
  server.addService(
    {
      Check: {
        path,
        ...plain,
        ...same,
        responseSerialize: (b: Buffer) => b,
        responseDeserialize: (b: Buffer) => b,
      },
    },
    {
      Check: (call: { request: Buffer }, reply: sendUnaryData<Buffer>) =>
        reply(null, Buffer.from([8, call.request.toString().includes("bad") ? 2 : 1])),
    },
  );
  cleanups.push(() => server.forceShutdown());
  return new Promise((resolve, reject) =>
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) =>
      error ? reject(error) : resolve(port),
    ),
  );
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-health-"));
  const own = new Authority(folder).issue("DNS:elsewhere");
  const closing = createServer();
  const closed = await listen(closing);
  closing.close();
  ports = {
    http: await listen(http.createServer(answer)),
    https: await listen(https.createServer({ key: own.key, cert: own.chain }, answer)),
    tcp: await listen(createServer((socket) => socket.on("error", () => {}))),
    mute: await listen(createServer((socket) => socket.on("error", () => {}))),
    grpc: await grpcServer(),
    closed,
  };
});
afterAll(() => {
  for (const cleanup of cleanups) cleanup();
  rmSync(folder, { recursive: true, force: true });
});

const at = (json: object, timeout = 2_000): Promise<Answer> =>
  check({ ...parseProbe(json), timeout }, "127.0.0.1");
const reason = async (json: object, timeout?: number) => {
  const said = await at(json, timeout);
  return said.healthy ? "healthy" : said.reason;
};

test("HTTP: 200 to 399 is well, a redirect is not followed", async () => {
  for (const status of [200, 204, 302, 399])
    expect(await at({ httpGet: { port: ports.http, path: `/${status}` } })).toEqual({ healthy: true });
  for (const status of [400, 404, 500, 503])
    expect(await reason({ httpGet: { port: ports.http, path: `/${status}` } })).toBe(`HTTP status ${status}`);
});

test("HTTP: path, headers and host go with it", async () => {
  const httpHeaders = [
    { name: "host", value: "shop.example" },
    { name: "X-Two", value: "a" },
    { name: "X-Two", value: "b" },
    { name: "user-agent", value: "me" },
  ];
  expect(await at({ httpGet: { port: ports.http, path: "/200?a=b", httpHeaders } })).toEqual({
    healthy: true,
  });
  expect(asked?.url).toBe("/200?a=b");
  expect(asked?.method).toBe("GET");
  expect(asked?.headers).toMatchObject({ host: "shop.example", "x-two": "a, b", "user-agent": "me" });
});

test("HTTPS: the server's certificate is nobody's concern", async () => {
  expect(await at({ httpGet: { port: ports.https, scheme: "HTTPS" } })).toEqual({ healthy: true });
  expect(await reason({ httpGet: { port: ports.https } })).not.toBe("healthy");
});

test("nobody listens, nobody answers, no such name", async () => {
  expect(await reason({ httpGet: { port: ports.closed } })).toContain("ECONNREFUSED");
  expect(await reason({ httpGet: { port: ports.mute } }, 150)).toBe("no answer within 0.15 s");
  expect(await reason({ httpGet: { port: ports.http, path: "/never" } }, 150)).toBe(
    "no answer within 0.15 s",
  );
  expect(await reason({ tcpSocket: { port: ports.closed } })).toContain("ECONNREFUSED");
  expect(await reason({ tcpSocket: { port: 80, host: "no-such-name.invalid" } })).toMatch(
    /ENOTFOUND|EAI_AGAIN|no answer/,
  );
});

test("TCP: a connection is enough, it is closed, and the host may be another", async () => {
  expect(await at({ tcpSocket: { port: ports.tcp } })).toEqual({ healthy: true });
  expect(await check(parseProbe({ tcpSocket: { port: ports.tcp, host: "127.0.0.1" } }), "192.0.2.1")).toEqual(
    {
      healthy: true,
    },
  );
});

test("gRPC: SERVING is well", async () => {
  expect(await at({ grpc: { port: ports.grpc } })).toEqual({ healthy: true });
  expect(await at({ grpc: { port: ports.grpc, service: "s".repeat(200) } })).toEqual({ healthy: true });
  expect(await reason({ grpc: { port: ports.grpc, service: "bad" } })).toBe("it is not SERVING");
  expect(await reason({ grpc: { port: ports.closed } })).toContain("ECONNREFUSED");
  expect(await reason({ grpc: { port: ports.mute } }, 150)).toBe("no answer within 0.15 s");
});

test("exec: exit code 0 is well, else its last words are told", async () => {
  expect(await at({ exec: { command: ["true"] } })).toEqual({ healthy: true });
  expect(await reason({ exec: { command: ["sh", "-c", "echo one >&2; echo two >&2; exit 3"] } })).toBe(
    "sh ended with exit code 3: two",
  );
  expect(await reason({ exec: { command: ["sh", "-c", "kill -9 $$"] } })).toBe("sh ended with SIGKILL");
  expect(await reason({ exec: { command: ["/no/such/file"] } })).toContain("ENOENT");
});

test("exec: what takes too long ends, with all that it started", async () => {
  const file = join(folder, "pid");
  const script = `sleep 60 & echo $! > ${file}; wait`;
  expect(await reason({ exec: { command: ["sh", "-c", script] } }, 300)).toBe("no answer within 0.3 s");
  await gone(Number(readFileSync(file, "utf8")));
  expect(await at({ exec: { command: ["sh", "-c", `sleep 60 & echo $! > ${file}`] } })).toEqual({
    healthy: true,
  });
  await gone(Number(readFileSync(file, "utf8")));
});

test("what is being asked can be given up", async () => {
  const giving = new AbortController();
  setTimeout(() => giving.abort(), 50);
  const began = performance.now();
  const said = await check(parseProbe({ exec: { command: ["sleep", "60"] } }), "127.0.0.1", giving.signal);
  expect(said.healthy).toBe(false);
  expect(performance.now() - began).toBeLessThan(900);
});

async function gone(pid: number): Promise<void> {
  expect(pid).toBeGreaterThan(1);
  for (let i = 0; i < 200; i++) {
    // A zombie that nobody has waited for yet is gone enough.
    const stat = `/proc/${pid}/stat`;
    if (!existsSync(stat) || /\) Z /.test(readFileSync(stat, "utf8"))) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`process ${pid} still runs`);
}
