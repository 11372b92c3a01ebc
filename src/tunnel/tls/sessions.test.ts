import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { createServer, type TLSSocket } from "node:tls";
import { dialTcp, listening, type TestMesh } from "../../../test/lab/mesh-member.ts";
import { TunnelHalves } from "../../../test/lab/tunnel-halves.ts";
import { Sessions } from "./sessions.ts";

let lab: TunnelHalves;
let mesh: TestMesh;
beforeAll(() => {
  lab = new TunnelHalves();
  ({ mesh } = lab);
});
afterAll(() => lab.close());
beforeEach(() => lab.begin());
afterEach(() => lab.end());

const ticket = (name: string) => Buffer.from(name);

test("each session is used once, the newest first, and all of them are bounded", () => {
  const sessions = new Sessions();
  expect(sessions.take("a")).toBeUndefined();
  for (const name of ["1", "2"]) sessions.put("a", ticket(name));
  expect([1, 2, 3].map(() => sessions.take("a")?.toString())).toEqual(["2", "1", undefined]);
  for (let i = 0; i < 40; i++) sessions.put("a", ticket(String(i)));
  const kept = Array.from({ length: 40 }, () => sessions.take("a")?.toString()).filter(Boolean);
  expect(kept.length).toBe(16);
  expect(kept[0]).toBe("39");
  for (let i = 0; i < 3_000; i++) sessions.put(`peer ${i}`, ticket("x"));
  expect(sessions.take("peer 999")).toBeUndefined();
  expect(sessions.take("peer 1000")).toBeDefined();
  expect(sessions.take("peer 2999")).toBeDefined();
});

/** One word and its answer, with neither side closed before: tickets come with a server's first bytes. */
async function ask(entrance: number, address: string): Promise<string> {
  const socket = await dialTcp(entrance, address);
  lab.defer(() => socket.destroy());
  return new Promise((resolve) => {
    socket.once("data", (chunk: Buffer) => {
      socket.end();
      resolve(String(chunk));
    });
    socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? ""));
    socket.write("hello");
  });
}

/** A peer that answers `got TEXT`, and notes of each connection whether it resumes a session, and who the client is. */
async function peer(days: { from?: number; to?: number } = {}) {
  const seen: string[] = [];
  const server = createServer({ ...mesh.issue("web", days), requestCert: true, allowHalfOpen: true });
  server.on("secureConnection", (socket: TLSSocket) => {
    seen.push(
      `${socket.isSessionReused() ? "resumed" : "whole"} ${socket.getPeerCertificate().subjectaltname}`,
    );
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => socket.write(`got ${chunk}`));
    socket.on("end", () => socket.end());
  });
  server.on("tlsClientError", () => {});
  lab.defer(() => server.close());
  return { seen, port: await listening(server) };
}

const istio = (account: string) => ({
  kind: "istio" as const,
  sni: "outbound_.80_._.web.shop.svc.cluster.local",
  sans: [{ kind: "exact" as const, value: mesh.id(account) }],
});

test("the next connection to a peer resumes its session; who it is gets checked all the same, until a new certificate", async () => {
  const store = mesh.store("app");
  const credentials = lab.credentials("app", store);
  const entrance = await lab.outbound(lab.dialer(credentials));
  const { seen, port } = await peer();
  const right = lab.target(8, port, istio("web"));
  for (let i = 0; i < 3; i++) expect(await ask(entrance, right)).toBe("got hello");
  const app = `URI:${mesh.id("app")}`;
  expect(seen).toEqual([`whole ${app}`, `resumed ${app}`, `resumed ${app}`]);
  expect(lab.counters.rows.identities).toEqual({ [mesh.id("web")]: 3 });
  // The same peer by the same name, but it should be somebody else.
  expect(await ask(entrance, lab.target(9, port, istio("bank")))).toBe("ECONNRESET");
  expect(lab.counters.rows.ways.outbound.failures).toEqual({ "wrong-san": 1 });
  mesh.renew(store, "app");
  credentials.refresh();
  seen.length = 0;
  for (let i = 0; i < 2; i++) expect(await ask(entrance, right)).toBe("got hello");
  expect(seen).toEqual([`whole ${app}`, `resumed ${app}`]);
});

test("no session outlives the peer's certificate", async () => {
  const entrance = await lab.outbound(lab.dialer(lab.credentials("app")));
  const second = 1 / 86_400;
  const { seen, port } = await peer({ to: 2 * second });
  const short = lab.target(8, port, istio("web"));
  expect(await ask(entrance, short)).toBe("got hello");
  expect(seen.length).toBe(1);
  await Bun.sleep(2_300);
  expect(await ask(entrance, short)).toBe("ECONNRESET");
  expect(lab.counters.rows.ways.outbound.failures).toEqual({ expired: 1 });
  // Not what a whole handshake finds: the session was resumed.
  expect(lab.lines.at(-1)).toContain("the peer's certificate was valid until");
});
