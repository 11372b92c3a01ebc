import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { once } from "node:events";
import { request } from "node:http";
import { connect } from "node:net";
import { PageServer } from "./page-server.ts";

const BIG = { text: "x".repeat(8 << 20) };
const big = Promise.withResolvers<void>();
let made = 0;

describe("the page's server", () => {
  let server: PageServer;
  let token: string;
  beforeAll(async () => {
    server = await PageServer.listen(0, {
      edges: async (window) => {
        made++;
        if (window === 7) throw new Error("no agent runs");
        if (window !== 9) return { window };
        await big.promise;
        return BIG;
      },
      history: async (edge) => (edge === "a" ? { edge } : undefined),
    });
    token = new URL(server.url).hash.slice(1);
  });
  afterAll(() => server.close());

  /** As a client sends it, Host and Origin included. */
  const ask = (path: string, headers: Record<string, string> = {}, method = "GET") =>
    new Promise<{ status: number; headers: Record<string, unknown>; text: string }>((resolve, reject) => {
      const call = request(
        { host: "127.0.0.1", port: server.port, path: `/topology/${path}`, method, headers },
        (response) => {
          let text = "";
          response.setEncoding("utf8");
          response.on("data", (part: string) => {
            text += part;
          });
          response.on("end", () =>
            resolve({ status: response.statusCode ?? 0, headers: response.headers, text }),
          );
        },
      );
      call.on("error", reject);
      call.end();
    });
  const authorized = (more: Record<string, string> = {}) => ({ authorization: `Bearer ${token}`, ...more });

  test("data needs the token", async () => {
    expect((await ask("edges?window=60", authorized())).text).toBe('{"window":60}');
    for (const headers of [
      {},
      { authorization: "Bearer " },
      { authorization: `Bearer ${token}x` },
      { authorization: token },
    ])
      expect((await ask("edges?window=60", headers)).status).toBe(401);
    expect((await ask(`edges?window=60&token=${token}`)).status).toBe(401);
    expect((await ask("edges/history?edge=a")).status).toBe(401);
  });

  test("no other site is answered: wrong Host, wrong Origin, cross-site by the browser's word", async () => {
    const host = `127.0.0.1:${server.port}`;
    for (const foreign of [
      { host: "evil.example" },
      { host: `evil.example:${server.port}` },
      { host: `127.0.0.1.evil.example:${server.port}` },
      { host, origin: "http://evil.example" },
      { host, origin: "null" },
      { host, origin: `http://127.0.0.1:${server.port + 1}` },
      { host, "sec-fetch-site": "cross-site" },
      // Another port of this machine is another site.
      { host, "sec-fetch-site": "same-site" },
    ])
      for (const path of ["edges?window=60", ""])
        expect(await ask(path, authorized(foreign))).toMatchObject({ status: 403 });
    for (const own of [
      { host },
      { host: `localhost:9` },
      { host, origin: `http://${host}` },
      { host, "sec-fetch-site": "same-origin" },
    ])
      expect(await ask("edges?window=60", authorized(own))).toMatchObject({ status: 200 });
  });

  test("the page has a policy that lets nothing in, and only its files are there", async () => {
    const { status, headers, text } = await ask("");
    expect(status).toBe(200);
    const policy = String(headers["content-security-policy"]);
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toContain("unsafe");
    expect(headers["access-control-allow-origin"]).toBeUndefined();
    expect(text).not.toMatch(/https?:|<style|<script>|style=/);
    for (const path of ["../etc/passwd", "page.ts", "constructor", "%2e%2e/agent"])
      expect((await ask(path, authorized())).status).toBe(404);
    expect((await ask("edges", authorized(), "POST")).status).toBe(405);
    expect((await ask("edges", authorized(), "OPTIONS")).status).toBe(405);
  });

  test("bad input gets a word", async () => {
    for (const window of ["0", "-1", "x", "1e9"])
      expect((await ask(`edges?window=${window}`, authorized())).status).toBe(400);
    expect(await ask("edges?window=7", authorized())).toMatchObject({
      status: 502,
      text: '{"error":"no agent runs"}',
    });
    expect((await ask("edges/history?edge=b", authorized())).status).toBe(404);
  });

  test("more connections than there is room for are refused, and cut none of the others", async () => {
    const own = await PageServer.listen(0, { edges: async () => ({}), history: async () => undefined });
    const held = Array.from({ length: 32 }, () => connect(own.port, "127.0.0.1"));
    await Promise.all(
      held.map((socket) => {
        socket.write("GET /topology/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        return once(socket, "data");
      }),
    );
    const extra = connect(own.port, "127.0.0.1");
    extra.on("error", () => {});
    extra.write("GET");
    await new Promise((resolve) => extra.on("close", resolve));
    expect(held.filter(({ closed }) => closed)).toEqual([]);
    own.close();
  });

  test("what is no whole request is ended", async () => {
    const own = await PageServer.listen(0, { edges: async () => ({}), history: async () => undefined }, 300);
    const client = (sent: string, drip = "") => {
      const socket = connect(own.port, "127.0.0.1");
      const timer = setInterval(() => socket.write(drip), 50);
      socket.on("error", () => {});
      socket.on("data", () => {});
      socket.write(sent);
      return new Promise<void>((resolve) => {
        socket.on("close", () => {
          clearInterval(timer);
          resolve();
        });
      });
    };
    const host = "Host: 127.0.0.1\r\n";
    await Promise.all([
      client(""),
      client(`GET /topology/ HTTP/1.1\r\n${host}`),
      client(`GET /topology/ HTTP/1.1\r\n${host}`, "X-More: a\r\n"),
      client(`POST /topology/ HTTP/1.1\r\n${host}Content-Length: 100000\r\n\r\n`, "a"),
      client(`GET /topology/ HTTP/1.1\r\n${host}Transfer-Encoding: chunked\r\n\r\n`, "1\r\na\r\n"),
      client(`GET /topology/${"a".repeat(50_000)} HTTP/1.1\r\n${host}\r\n`),
      ...Array.from({ length: 60 }, () => client("")),
    ]);
    // The room is there again.
    const response = await fetch(`http://127.0.0.1:${own.port}/topology/page.css`);
    expect(response.status).toBe(200);
    await response.text();
    own.close();
  });

  test("clients that never read cost connections, a body in all, and nobody else's answer", async () => {
    made = 0;
    const before = process.memoryUsage.rss();
    const started = await Promise.all(
      Array.from({ length: 20 }, async () => {
        const socket = connect(server.port, "127.0.0.1");
        socket.on("error", () => {});
        const isAnswered = new Promise<void>((resolve) => {
          socket.once("data", () => {
            socket.pause();
            resolve();
          });
        });
        await once(socket, "connect");
        socket.write(
          `GET /topology/edges?window=9 HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ${token}\r\n\r\n`,
        );
        return { socket, isAnswered };
      }),
    );
    // Whoever asks later is answered after they were heard.
    expect((await ask("")).status).toBe(200);
    big.resolve();
    await Promise.all(started.map(({ isAnswered }) => isAnswered));
    expect((await ask("edges?window=61", authorized())).status).toBe(200);
    expect(made).toBe(2);
    // Twenty bodies of 8 MB would be 160.
    expect(process.memoryUsage.rss() - before).toBeLessThan(100 << 20);
    for (const { socket } of started) socket.destroy();
  });
});
