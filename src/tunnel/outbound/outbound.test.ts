import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { createServer as createTlsServer, type TLSSocket, type TlsOptions } from "node:tls";
import { dialTcp, listening, outcome, type TestMesh } from "../../../test/lab/mesh-member.ts";
import { eventually } from "../../../test/lab/process.ts";
import { TunnelHalves } from "../../../test/lab/tunnel-halves.ts";
import { readCertificate } from "../../istiod/identity/certificate.ts";
import type { Transport } from "../../mesh/transport.ts";
import { addressOfTarget } from "../../mesh/tunnel-address.ts";
import type { MeshCredentials } from "../tls/mesh-credentials.ts";
import type { TunnelTarget } from "./target.ts";

let lab: TunnelHalves;
let mesh: TestMesh;
let foreign: TestMesh;
beforeAll(() => {
  lab = new TunnelHalves();
  ({ mesh, foreign } = lab);
});
afterAll(() => lab.close());

let store: ReturnType<TestMesh["store"]>;
let credentials: MeshCredentials;
let entrance = 0;

beforeEach(async () => {
  lab.begin();
  store = mesh.store("app");
  credentials = lab.credentials("app", store);
  entrance = await lab.outbound(lab.dialer(credentials));
});
afterEach(() => lab.end());

const seen: {
  sni: string | false | null;
  alpn: string | false | null;
  peer: string | undefined;
  text: string;
}[] = [];

/** A peer that demands mutual TLS, answers each text by `got TEXT` at its end, and notes what it saw. */
async function peer(options: TlsOptions): Promise<number> {
  const server = createTlsServer({
    requestCert: true,
    rejectUnauthorized: true,
    allowHalfOpen: true,
    ...options,
  });
  seen.length = 0;
  server.on("secureConnection", (socket: TLSSocket) => {
    socket.on("error", () => {});
    const row = {
      sni: "",
      alpn: socket.alpnProtocol,
      peer: socket.getPeerCertificate().subjectaltname,
      text: "",
    };
    row.sni = (socket as TLSSocket & { servername?: string }).servername ?? "";
    seen.push(row);
    socket.on("data", (chunk: Buffer) => {
      row.text += chunk;
    });
    socket.on("end", () => socket.end(`got ${row.text}`));
  });
  server.on("tlsClientError", () => {});
  const port = await listening(server);
  lab.defer(() => server.close());
  return port;
}

const target = (number: number, port: number, transport: Transport) => lab.target(number, port, transport);
const ask = (address: string, text?: string) => lab.ask(entrance, address, text);

function istio(...accounts: string[]): Transport {
  const sans = accounts.map((account) => ({ kind: "exact" as const, value: mesh.id(account) }));
  return { kind: "istio", sni: "outbound_.80_._.web.shop.svc.cluster.local", sans };
}

const failures = () => lab.counters.rows.ways.outbound.failures;

test("sidecar mTLS: ALPN istio alone, the SNI, our certificate, half-close both ways", async () => {
  const at = target(8, await peer({ ...mesh.issue("web"), ALPNProtocols: ["istio"] }), istio("other", "web"));
  expect(await ask(at)).toBe("got hello");
  expect(seen).toEqual([
    {
      sni: "outbound_.80_._.web.shop.svc.cluster.local",
      alpn: "istio",
      peer: `URI:${mesh.id("app")}`,
      text: "hello",
    },
  ]);
  await lab.idle("outbound");
  expect(lab.counters.rows.ways.outbound).toEqual({
    open: 0,
    total: 1,
    pending: 0,
    sent: 5,
    received: 9,
    failures: {},
  });
  expect(lab.counters.rows.identities).toEqual({ [mesh.id("web")]: 1 });
});

test("a peer that chooses no ALPN and speaks TLS 1.2 only is right, too", async () => {
  const at = target(8, await peer({ ...mesh.issue("web"), maxVersion: "TLSv1.2" }), istio("web"));
  expect(await ask(at)).toBe("got hello");
});

test("16 MB go each way unchanged, and a reader that does not read holds the writer back", async () => {
  const at = target(2, await peer({ ...mesh.issue("web") }), istio("web"));
  const text = "0123456789abcdef".repeat(1 << 20);
  expect((await ask(at, text)) === `got ${text}`).toBe(true);
  const slow = createTlsServer({ ...mesh.issue("web"), requestCert: true }, (socket) => socket.pause());
  lab.defer(() => slow.close());
  const stuck = await dialTcp(entrance, target(3, await listening(slow), istio("web")));
  lab.defer(() => stuck.destroy());
  let taken = 0;
  const block = Buffer.alloc(1 << 16);
  const more = () => {
    while (taken < 1 << 28 && stuck.write(block)) taken += block.length;
  };
  stuck.on("drain", more);
  stuck.on("error", () => {});
  more();
  await Bun.sleep(300);
  const before = taken;
  await Bun.sleep(200);
  expect(taken).toBe(before);
  // Socket buffers of the kernel on four sockets, and what node keeps.
  expect(taken).toBeLessThan(32 << 20);
});

test("the app sees the end that the peer made: in good order, half of it, or a reset", async () => {
  const ways: [string, string, (socket: TLSSocket) => void][] = [
    ["at once", "", (socket) => socket.end()],
    ["after its words", "bye", (socket) => socket.end("bye")],
    ["a reset", "ECONNRESET", (socket) => socket.resetAndDestroy()],
  ];
  for (const [name, expected, act] of ways) {
    const server = createTlsServer(
      { ...mesh.issue("web"), requestCert: true, allowHalfOpen: true },
      (socket) => {
        socket.on("error", () => {});
        socket.resume();
        act(socket);
      },
    );
    lab.defer(() => server.close());
    const client = await dialTcp(entrance, target(2, await listening(server), istio("web")));
    lab.defer(() => client.destroy());
    expect([name, await outcome(client)]).toEqual([name, expected]);
  }
  // The app's reset reaches the peer as one, and no orderly end.
  const ended = Promise.withResolvers<string>();
  const server = createTlsServer(
    { ...mesh.issue("web"), requestCert: true, allowHalfOpen: true },
    (socket) => {
      socket.on("error", (error: NodeJS.ErrnoException) => ended.resolve(error.code ?? error.message));
      socket.on("end", () => ended.resolve("end"));
      socket.on("close", () => ended.resolve("closed"));
      socket.resume();
      socket.write("hello");
    },
  );
  lab.defer(() => server.close());
  const client = await dialTcp(entrance, target(2, await listening(server), istio("web")));
  await once(client, "data");
  client.resetAndDestroy();
  expect(["ECONNRESET", "closed"]).toContain(await ended.promise);
});

test("every failure is a reset for the app, with its reason counted", async () => {
  const cases: [string, () => Promise<string>][] = [
    ["wrong-san", async () => target(2, await peer({ ...mesh.issue("web") }), istio("other"))],
    [
      "unknown-ca",
      async () => target(2, await peer({ ...foreign.issue("web"), ca: mesh.authority.root }), istio("web")),
    ],
    [
      "expired",
      async () => target(2, await peer({ ...mesh.issue("web", { from: -3, to: -1 }) }), istio("web")),
    ],
    [
      "not-yet-valid",
      async () => target(2, await peer({ ...mesh.issue("web", { from: 1, to: 2 }) }), istio("web")),
    ],
    // The right name among two, and of another trust domain.
    ["wrong-san", async () => target(2, await peer(named(mesh.id("web"), mesh.id("other"))), istio("web"))],
    [
      "wrong-san",
      async () => target(2, await peer(named("spiffe://elsewhere/ns/shop/sa/web")), istio("web")),
    ],
    ["refused-by-peer", async () => target(2, await demanding(), istio("web"))],
    [
      "connect-refused",
      async () => {
        const server = createServer();
        const port = await listening(server);
        server.close();
        await once(server, "close");
        return target(2, port, istio("web"));
      },
    ],
    [
      "not-tls",
      async () => target(2, await plain((socket) => socket.write("HTTP/1.1 400\r\n\r\n")), istio("web")),
    ],
    ["handshake-timeout", async () => target(2, await plain(() => {}), istio("web"))],
    ["reset", async () => target(2, await plain((socket) => socket.resetAndDestroy()), istio("web"))],
    ["no-alpn", async () => target(2, await peer({ ...mesh.issue("web") }), hboneAt(1))],
    ["unknown-target", async () => addressOfTarget(99)],
    ["bad-file", async () => target(2, 1, { ...external, roots: "/nowhere/ca.pem" })],
  ];
  for (const [reason, prepare] of cases) {
    const address = await prepare();
    const transport = lab.targets.get(2)?.transport;
    if (transport?.kind === "hbone") transport.port = lab.targets.get(2)?.peer.port ?? 0;
    expect([reason, await ask(address)]).toEqual([reason, "ECONNRESET"]);
    expect({ [reason]: 1 }).toEqual(await lab.failures("outbound", 1));
    lab.counters.rows.ways.outbound.failures = {};
  }
  expect(lab.counters.rows.ways.outbound).toMatchObject({ open: 0, pending: 0 });
  expect(lab.lines.join("\n")).not.toContain("PRIVATE KEY");
});

test("a failed handshake is tried on the other endpoint, and counts for ejection as a failed connect does", async () => {
  const went: string[] = [];
  const enter = await lab.outbound(lab.dialer(credentials), {
    another: ({ number }) => lab.targets.get(number === 2 ? 3 : 2),
    record: ({ number }, how) => went.push(`${how} ${number}`),
    now: () => 0n,
  });
  const ask2 = async (port: number) => {
    const at = target(2, port, istio("web"));
    went.length = 0;
    const socket = await dialTcp(enter, at);
    const answer = outcome(socket);
    socket.end("hello");
    return answer;
  };
  const theirs = { ...foreign.issue("web"), ca: mesh.authority.root };
  const bad: [string, () => Promise<number>][] = [
    ["unknown-ca", () => peer(theirs)],
    ["wrong-san", () => peer(mesh.issue("other"))],
    ["handshake-timeout", () => plain(() => {})],
    ["reset", () => plain((socket) => socket.resetAndDestroy())],
    // TLS 1.2 says so within the handshake.
    ["refused-by-peer", () => demanding("-tls1_2")],
  ];
  target(3, await peer(mesh.issue("web")), istio("web"));
  for (const [reason, make] of bad) {
    expect([reason, await ask2(await make())]).toEqual([reason, "got hello"]);
    expect([reason, failures(), went]).toEqual([reason, { [reason]: 1 }, ["wrong 2", "well 3"]]);
    lab.counters.rows.ways.outbound.failures = {};
  }
  expect(lab.counters.rows.retried).toBe(bad.length);
  expect(lab.counters.rows.services.web).toMatchObject({ "unknown-ca": 1, "refused-by-peer": 1 });
  // TLS 1.3 says so later, when bytes of the app may be under way: it is not tried again, and counts all the same.
  expect(await ask2(await demanding())).toBe("ECONNRESET");
  expect([failures(), went]).toEqual([{ "refused-by-peer": 1 }, ["wrong 2"]]);
  // Both fail: one retry and no more.
  target(3, await plain((socket) => socket.resetAndDestroy()), istio("web"));
  expect(await ask2(await peer(theirs))).toBe("ECONNRESET");
  expect(went).toEqual(["wrong 2", "wrong 3"]);
});

/** openssl's server, which trusts another CA and refuses us by an alert. Bun's own servers close without a word. */
async function demanding(...more: string[]): Promise<number> {
  const { key, cert } = mesh.issue("web");
  const file = (name: string, text: string) => {
    writeFileSync(join(mesh.folder, name), text);
    return join(mesh.folder, name);
  };
  const files = [
    "-key",
    file("s.key", key),
    "-cert",
    file("s.pem", cert),
    "-CAfile",
    join(foreign.folder, "ca.pem"),
  ];
  const free = createServer();
  const port = await listening(free);
  free.close();
  await once(free, "close");
  const child = spawn("openssl", [
    "s_server",
    "-accept",
    `127.0.0.1:${port}`,
    "-Verify",
    "1",
    "-verify_return_error",
    ...files,
    ...more,
  ]);
  lab.defer(() => child.kill("SIGKILL"));
  for await (const chunk of child.stdout) if (String(chunk).includes("ACCEPT")) break;
  return port;
}

/** A member of the mesh whose certificate has these URIs. */
function named(...ids: string[]): TlsOptions {
  const { key, chain } = mesh.authority.issue(ids.map((id) => `URI:${id}`).join(","));
  return { key, cert: chain, ca: mesh.authority.root };
}

function hboneAt(port: number): Transport {
  return { kind: "hbone", authority: "", port, sans: [{ kind: "exact", value: mesh.id("web") }] };
}

async function plain(accept: (socket: Socket) => void): Promise<number> {
  const server: Server = createServer((socket) => {
    socket.on("error", () => {});
    socket.on("data", () => {});
    lab.defer(() => socket.destroy());
    accept(socket);
  });
  lab.defer(() => server.close());
  return listening(server);
}

test("a new certificate is used without a restart, and open connections go on", async () => {
  const at = target(2, await peer({ ...mesh.issue("web") }), istio("web"));
  const old = await dialTcp(entrance, at);
  old.write("a");
  while (seen[0]?.text !== "a") await Bun.sleep(5);
  mesh.renew(store, "renewed");
  credentials.refresh();
  expect(await ask(at)).toBe("got hello");
  expect(seen.map((row) => row.peer)).toEqual([`URI:${mesh.id("app")}`, `URI:${mesh.id("renewed")}`]);
  const answer = outcome(old);
  old.end("b");
  expect(await answer).toBe("got ab");
  // Broken files leave the last certificate in use; an expired one refuses.
  writeFileSync(join(store.folder, "current/cert-chain.pem"), "garbage");
  credentials.refresh();
  expect(await ask(at)).toBe("got hello");
  mesh.renew(store, "late", { from: -3, to: -1 });
  credentials.refresh();
  expect(credentials.status()).toMatchObject({ valid: false, rotations: 2 });
  expect(await ask(at)).toBe("ECONNRESET");
  expect(failures()).toEqual({ "own-certificate-expired": 1 });
});

test("new roots are right for new connections without a restart, and old roots are wrong from then on", async () => {
  const theirs = foreign.issue("web");
  const at = target(
    2,
    await peer({ ...theirs, ca: mesh.authority.root + foreign.authority.root }),
    istio("web"),
  );
  expect(await ask(at)).toBe("ECONNRESET");
  const { key, cert } = mesh.issue("app");
  store.save(readCertificate(key, cert, mesh.authority.root + foreign.authority.root));
  credentials.refresh();
  expect(await ask(at)).toBe("got hello");
  mesh.renew(store, "app");
  credentials.refresh();
  expect(await ask(at)).toBe("ECONNRESET");
  expect(failures()).toEqual({ "unknown-ca": 2 });
  expect(lab.lines.join("\n")).not.toMatch(/PRIVATE KEY|BEGIN/);
});

const external = {
  kind: "tls",
  sni: "db.example.com",
  sans: [],
  roots: "",
  certificate: "",
  key: "",
  alpn: [],
} as const;

test("TLS of a DestinationRule: SIMPLE, MUTUAL, names, no verification", async () => {
  const { key, chain } = foreign.authority.issue("DNS:*.example.com");
  const port = await peer({ key, cert: chain, ca: foreign.authority.root, rejectUnauthorized: false });
  const roots = join(foreign.folder, "ca.pem");
  const exact = (value: string) => [{ kind: "exact" as const, value }];
  expect(await ask(target(2, port, { ...external, roots, sans: exact("db.example.com") }))).toBe("got hello");
  expect(seen.at(-1)).toMatchObject({ sni: "db.example.com", peer: undefined });
  expect(await ask(target(3, port, { ...external, roots, sans: exact("example.com") }))).toBe("ECONNRESET");
  expect(await ask(target(4, port, { ...external, roots: join(mesh.folder, "ca.pem") }))).toBe("ECONNRESET");
  expect(await ask(target(5, port, external))).toBe("got hello");
  expect(await ask(target(6, port, { ...external, sans: exact("other.org") }))).toBe("ECONNRESET");
  expect(await lab.failures("outbound", 3)).toEqual({ "wrong-san": 2, "unknown-ca": 1 });
  const client = foreign.issue("client");
  const files = { certificate: join(foreign.folder, "c.pem"), key: join(foreign.folder, "c.key") };
  writeFileSync(files.certificate, client.cert);
  writeFileSync(files.key, client.key);
  expect(await ask(target(7, port, { ...external, ...files, roots }))).toBe("got hello");
  expect(seen.at(-1)?.peer).toBe(`URI:${foreign.id("client")}`);
});

test("files of a DestinationRule: new ones count at once, broken and missing ones leave those before in use", async () => {
  const { key, chain } = foreign.authority.issue("DNS:db.example.com");
  const port = await peer({ key, cert: chain, ca: foreign.authority.root, rejectUnauthorized: false });
  const file = (name: string, text: string) => {
    const path = join(foreign.folder, name);
    writeFileSync(path, text);
    return path;
  };
  const first = foreign.issue("first");
  const second = foreign.issue("second");
  const files = {
    roots: file("own-roots.pem", foreign.authority.root),
    certificate: file("own.pem", first.cert),
    key: file("own.key", first.key),
  };
  const at = target(2, port, { ...external, ...files });
  const asked = async () => [await ask(at), seen.at(-1)?.peer];
  const asFirst = ["got hello", `URI:${foreign.id("first")}`];
  expect(await asked()).toEqual(asFirst);
  // A certificate whose key has not come yet; half of one; none.
  file("own.pem", second.cert);
  expect(await asked()).toEqual(asFirst);
  file("own.pem", second.cert.slice(0, 100));
  expect(await asked()).toEqual(asFirst);
  rmSync(files.certificate);
  expect(await asked()).toEqual(asFirst);
  expect(lab.lines.length).toBe(3);
  expect(lab.lines.at(-1)).toContain(`${files.certificate} can't be read: `);
  file("own.pem", second.cert);
  file("own.key", second.key);
  expect(await asked()).toEqual(["got hello", `URI:${foreign.id("second")}`]);
  // Other roots count at once: the peer is of none of theirs.
  file("own-roots.pem", mesh.authority.root);
  expect(await ask(at)).toBe("ECONNRESET");
  expect(failures()).toEqual({ "unknown-ca": 1 });
  expect(lab.lines.join("\n")).not.toMatch(/PRIVATE KEY|BEGIN/);
});

test("roots of the system are the machine's own, not those of the runtime", async () => {
  const { key, chain } = foreign.authority.issue("DNS:db.example.com");
  const port = await peer({ key, cert: chain, ca: foreign.authority.root, rejectUnauthorized: false });
  const at = target(2, port, { ...external, roots: "system" });
  expect(await ask(at)).toBe("ECONNRESET");
  expect(failures()).toEqual({ "unknown-ca": 1 });
  const before = process.env.SSL_CERT_FILE;
  process.env.SSL_CERT_FILE = join(foreign.folder, "ca.pem");
  try {
    expect(await ask(at)).toBe("got hello");
  } finally {
    if (before === undefined) delete process.env.SSL_CERT_FILE;
    else process.env.SSL_CERT_FILE = before;
  }
});

test("PROXY protocol: the header comes first, alone or before TLS", async () => {
  const heard: Buffer[] = [];
  const port = await plain((socket) => socket.on("data", (chunk) => heard.push(chunk as Buffer)));
  const v1 = await dialTcp(entrance, target(2, port, { kind: "proxy-protocol", version: 1 }));
  const port1 = v1.localPort;
  v1.end("x");
  const line = `PROXY TCP4 127.0.0.1 127.0.0.1 ${port1} ${port}\r\nx`;
  await eventually("the header", () => Buffer.concat(heard).length >= line.length);
  expect(Buffer.concat(heard).toString()).toBe(line);
  heard.length = 0;
  const v2 = await dialTcp(
    entrance,
    target(3, port, { kind: "proxy-protocol", version: 2, over: istio("web") }),
  );
  lab.defer(() => v2.destroy());
  await eventually("the header and more", () => Buffer.concat(heard).length > 28);
  const bytes = Buffer.concat(heard);
  expect(bytes.subarray(0, 16).toString("hex")).toBe("0d0a0d0a000d0a515549540a2111000c");
  expect(bytes.readUInt16BE(24)).toBe(v2.localPort ?? 0);
  // A ClientHello follows.
  expect(bytes[28]).toBe(0x16);
});

test("PROXY protocol: the app's address is this machine's towards the peer, not the loopback that it came by", async () => {
  const own = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .find(({ family, internal }) => family === "IPv4" && !internal)?.address;
  if (own === undefined) throw new Error("this machine has no address but loopback");
  const first = Promise.withResolvers<Buffer>();
  const port = await lab.listen((socket) => {
    socket.once("data", (chunk: Buffer) => first.resolve(chunk));
    socket.resume();
  }, "0.0.0.0");
  const at = target(2, port, { kind: "proxy-protocol", version: 1 });
  lab.targets.set(2, { ...(lab.targets.get(2) as TunnelTarget), peer: { address: own, port } });
  const app = await dialTcp(entrance, at);
  lab.defer(() => app.destroy());
  expect(String(await first.promise)).toBe(`PROXY TCP4 ${own} ${own} ${app.localPort} ${port}\r\n`);
});
