import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { type ConnectionOptions, connect as connectTls } from "node:tls";
import { dialTcp, outcome, type TestMesh } from "../../../test/lab/mesh-member.ts";
import { eventually } from "../../../test/lab/process.ts";
import { TunnelHalves } from "../../../test/lab/tunnel-halves.ts";
import { CertificateStore } from "../../istiod/identity/certificate-store.ts";
import type { MtlsMode } from "../../mesh/inbound.ts";
import type { Transport } from "../../mesh/transport.ts";
import type { Admission } from "./admission.ts";
import type { InboundTunnel } from "./inbound.ts";

let lab: TunnelHalves;
let mesh: TestMesh;
let foreign: TestMesh;
beforeAll(() => {
  lab = new TunnelHalves();
  ({ mesh, foreign } = lab);
});
afterAll(() => lab.close());
afterEach(() => lab.end());

/** An address of this machine other than loopback: a CONNECT to loopback is refused. */
const OWN = Object.values(networkInterfaces())
  .flatMap((addresses) => addresses ?? [])
  .find(({ family, internal }) => family === "IPv4" && !internal)?.address;

let tunnel: InboundTunnel;
let mode: MtlsMode | undefined;
let refused: string[] = [];
let app = 0;

const admission: Admission = {
  decide: ({ identity, destinationPort, sourceAddress }) => {
    const denied = identity !== undefined && refused.includes(identity.serviceAccount);
    const reason = `${identity?.serviceAccount ?? "nobody"} at ${sourceAddress} to ${destinationPort === app ? "the app" : "?"}`;
    return denied ? { allowed: false, reason, policy: "shop/no" } : { allowed: true, reason };
  },
  mtls: () => mode,
  trustDomains: () => ["old.example"],
};

beforeEach(async () => {
  lab.begin();
  refused = [];
  mode = "permissive";
  app = await lab.app();
  tunnel = lab.inbound(lab.credentials("vm"), admission);
});

const hbonePort = () => lab.listen((socket) => void tunnel.serveHbone(socket, () => {}));
const steeredPort = () =>
  lab.listen((socket) => {
    // What sk_assign gives: the socket's own address is the app's.
    Object.defineProperty(socket, "localPort", { value: app });
    void tunnel.serveSteered(socket, () => {}, 1);
  });

async function viaHbone(
  port: number,
  authority: string,
  account = "client",
  text = "hello",
): Promise<string> {
  const dialer = lab.dialer(lab.credentials(account));
  const transport: Transport = {
    kind: "hbone",
    authority,
    port,
    sans: [{ kind: "exact", value: mesh.id("vm") }],
  };
  const peer = { address: "127.0.0.1", port: app };
  try {
    const { stream } = await dialer.dial(
      { peer, transport },
      { address: "127.0.0.1", port: 1 },
      new AbortController().signal,
    );
    const answer = outcome(stream);
    stream.end(text);
    return await answer;
  } catch (error) {
    return (error as { reason?: string }).reason ?? String(error);
  }
}

test("HBONE: an allowed CONNECT reaches the app, others get ztunnel's statuses", async () => {
  const port = await hbonePort();
  const own = OWN ?? "10.0.0.1";
  expect(await viaHbone(port, `${own}:${app}`)).toBe("app got hello");
  refused = ["mallory"];
  expect(await viaHbone(port, `${own}:${app}`, "mallory")).toBe("denied-by-peer");
  // Loopback leads into the tunnel's own entrance; 192.0.2.1 is somebody else's.
  for (const authority of [
    `127.0.0.1:${app}`,
    "127.0.0.7:15001",
    "192.0.2.1:80",
    `[::1]:${app}`,
    `${own}:15008`,
    "web.shop:80",
    `${own}:0`,
    `${own}:99999`,
    `[::ffff:127.0.0.1]:${app}`,
    `0.0.0.0:${app}`,
    `admin@${own}:${app}`,
    `${own}:${app}:80`,
    own,
  ])
    expect([authority, await viaHbone(port, authority)]).toEqual([authority, "bad-response"]);
  expect(await viaHbone(port, `${own}:1`)).toBe("peer-unavailable");
  // A port of none of this machine's services, though something listens there.
  mode = undefined;
  expect(await viaHbone(port, `${own}:${app}`)).toBe("bad-response");
  await lab.failures("hbone", 16);
  await lab.idle("hbone");
  expect(lab.counters.rows.ways.hbone).toMatchObject({
    open: 0,
    pending: 0,
    total: 1,
    received: 5,
    sent: 13,
  });
  expect(lab.counters.rows.ways.hbone.failures).toEqual({
    denied: 1,
    "not-ours": 8,
    "bad-request": 6,
    "connect-refused": 1,
  });
  expect(lab.counters.rows.identities).toEqual({ [mesh.id("client")]: 1 });
  expect(lab.lines.join()).toContain("is refused by shop/no (mallory at 127.0.0.1 to the app)");
});

/** A client of bare TLS; gives what it reads until the end, or its error's code. */
async function tlsClient(port: number, options: ConnectionOptions, text = "hello"): Promise<string> {
  const socket = connectTls({ host: "127.0.0.1", port, rejectUnauthorized: false, ...options });
  const answer = outcome(socket);
  socket.once("secureConnect", () => socket.end(text));
  lab.defer(() => socket.destroy());
  return answer;
}

test("CONNECTs are bounded in all, since many share one connection: one too many gets 503", async () => {
  tunnel = lab.inbound(lab.credentials("vm"), admission, 2);
  const port = await hbonePort();
  const authority = `${OWN ?? "10.0.0.1"}:${app}`;
  const peer = { address: "127.0.0.1", port: app };
  const transport: Transport = {
    kind: "hbone",
    authority,
    port,
    sans: [{ kind: "exact", value: mesh.id("vm") }],
  };
  const dialer = lab.dialer(lab.credentials("client"));
  const dial = () => dialer.dial({ peer, transport }, peer, new AbortController().signal);
  const first = await dial();
  const second = await dial();
  await expect(dial()).rejects.toMatchObject({ reason: "peer-unavailable" });
  expect(lab.counters.rows.ways.hbone.failures).toEqual({ overload: 1 });
  for (const { stream } of [first, second]) {
    const answer = outcome(stream.resume());
    stream.end("hello");
    expect(await answer).toBe("app got hello");
  }
  await lab.idle("hbone");
  expect((await dial()).identity).toBe(mesh.id("vm"));
});

test("a connection that is in its HBONE handshake when the tunnel drains ends with its last stream", async () => {
  const port = await hbonePort();
  tunnel.drain();
  expect(await viaHbone(port, `${OWN ?? "10.0.0.1"}:${app}`)).toBe("app got hello");
  await eventually("the connection has ended", () => tunnel.connections === 0);
});

test("sidecar mTLS on a permissive port, plaintext beside it, TLS of the app's own passes through", async () => {
  const port = await steeredPort();
  expect(
    await tlsClient(port, { ...mesh.issue("client"), ALPNProtocols: ["istio-peer-exchange", "istio"] }),
  ).toBe("app got hello");
  const plain = await dialTcp(port);
  const answer = outcome(plain);
  plain.end("plain");
  expect(await answer).toBe("app got plain");
  // The app gets the ClientHello, and what it answers is no TLS.
  expect(await tlsClient(port, { ALPNProtocols: ["h2"] })).toMatch(/WRONG_VERSION|SSL|ECONNRESET/);
  const silent = await dialTcp(port);
  await Bun.sleep(350);
  const late = outcome(silent);
  silent.end("after the server spoke first");
  expect(await late).toBe("app got after the server spoke first");
  await lab.idle("inbound");
  expect(lab.counters.rows.ways.inbound).toMatchObject({ open: 0, pending: 0, total: 4, failures: {} });
  expect(lab.counters.rows.identities).toEqual({ [mesh.id("client")]: 1 });
});

test("of what a client offers a protocol is chosen that changes no byte; others come in without one", async () => {
  const chosen = async (...offers: string[]) => {
    const socket = connectTls({
      ...{ host: "127.0.0.1", port: await steeredPort(), rejectUnauthorized: false },
      ...{ ...mesh.issue("client"), ALPNProtocols: offers },
    });
    lab.defer(() => socket.destroy());
    const answer = outcome(socket);
    socket.once("secureConnect", () => socket.end("hello"));
    expect(await answer).toBe("app got hello");
    return socket.alpnProtocol || "none";
  };
  // With istio-peer-exchange Istio's Envoy would write its own bytes into the stream.
  expect(await chosen("istio-peer-exchange", "istio")).toBe("istio");
  expect(await chosen("istio-peer-exchange")).toBe("none");
  mode = "strict";
  expect(await chosen("h2", "http/1.1")).toBe("http/1.1");
  expect(await chosen("h2")).toBe("h2");
  expect(await chosen("postgresql")).toBe("none");
});

test("a client that half-closes at once is answered", async () => {
  const port = await steeredPort();
  expect(await tlsClient(port, { ...mesh.issue("client"), ALPNProtocols: ["istio"] }, "")).toBe("app got ");
  const own = OWN ?? "10.0.0.1";
  expect(await viaHbone(await hbonePort(), `${own}:${app}`, "client", "")).toBe("app got ");
});

test("a strict port takes mutual TLS alone, whatever ALPN it offers", async () => {
  mode = "strict";
  const port = await steeredPort();
  expect(await tlsClient(port, mesh.issue("client"))).toBe("app got hello");
  const plain = await dialTcp(port);
  const answer = outcome(plain);
  plain.write("plain");
  expect(await answer).toBe("ECONNRESET");
  mode = "disable";
  const open = await dialTcp(port);
  const passed = outcome(open);
  open.end("plain");
  expect(await passed).toBe("app got plain");
  expect(lab.counters.rows.ways.inbound.failures).toEqual({ plaintext: 1 });
});

test("a strict port waits for the ClientHello of a busy client, and gives up on a silent one", async () => {
  mode = "strict";
  const port = await steeredPort();
  const busy = await dialTcp(port);
  const silent = await dialTcp(port);
  // Longer than a port that takes plaintext, too, waits for a first byte.
  await Bun.sleep(350);
  const socket = connectTls({ socket: busy, rejectUnauthorized: false, ...mesh.issue("client") });
  const answer = outcome(socket);
  socket.end("hello");
  expect(await answer).toBe("app got hello");
  expect(await outcome(silent)).toBe("ECONNRESET");
  expect(lab.counters.rows.ways.inbound.failures).toEqual({ "handshake-timeout": 1 });
});

test("a client that is not of the mesh gets nothing, with its reason", async () => {
  mode = "strict";
  const steered = await steeredPort();
  const uris = (...ids: string[]) => {
    const { key, chain } = mesh.authority.issue(ids.map((id) => `URI:${id}`).join(","));
    return { key, cert: chain };
  };
  const cases: [string, ConnectionOptions][] = [
    ["unknown-ca", foreign.issue("client")],
    ["no-peer-certificate", {}],
    ["expired", mesh.issue("client", { from: -3, to: -1 })],
    ["not-yet-valid", mesh.issue("client", { from: 1, to: 2 })],
    ["tls-error", { ...mesh.issue("client"), minVersion: "TLSv1", maxVersion: "TLSv1.1" }],
    ["wrong-san", uris("spiffe://elsewhere/ns/shop/sa/client")],
    ["wrong-san", uris(mesh.id("client"), mesh.id("other"))],
    ["wrong-san", uris("https://example.com/")],
    [
      "wrong-san",
      uris(
        "spiffe://cluster.local/ns/shop/sa/client, URI:spiffe://cluster.local/ns/shop/sa/admin".replace(
          ",",
          "%2C",
        ),
      ),
    ],
  ];
  for (const [reason, options] of cases) {
    expect(await tlsClient(steered, options)).not.toContain("app got");
    expect([reason, await lab.failures("inbound", 1)]).toEqual([reason, { [reason]: 1 }]);
    lab.counters.rows.ways.inbound.failures = {};
  }
  expect(await tlsClient(steered, uris("spiffe://old.example/ns/shop/sa/client"))).toBe("app got hello");
  expect(lab.counters.rows.ways.inbound).toMatchObject({ total: 1, pending: 0 });
});

test("a ClientHello that does not end, or is none, is given up on with its reason", async () => {
  mode = "strict";
  const port = await steeredPort();
  for (const [hex, reason] of [
    // The head of a record of 512 bytes, and one byte of it; a hello that ends before its random; a record of no bytes.
    ["160301020001", "handshake-timeout"],
    ["16030100050100000100", "tls-error"],
    ["1603010000", "handshake-timeout"],
    // A hello of 16 MiB, and one of 48 KiB that comes whole, in three records.
    [`1603014000${"01fffffe".padEnd(2 * 16_384, "0")}`, "tls-error"],
    [["0100bffc", "", ""].map((head) => `1603014000${head.padEnd(2 * 16_384, "0")}`).join(""), "tls-error"],
  ] as const) {
    const socket = await dialTcp(port);
    lab.defer(() => socket.destroy());
    socket.write(Buffer.from(hex, "hex"));
    // Nothing, or an alert.
    expect(await outcome(socket)).not.toContain("app got");
    expect([hex, Object.keys(await lab.failures("inbound", 1))]).toEqual([hex, [reason]]);
    lab.counters.rows.ways.inbound.failures = {};
  }
  expect(lab.counters.rows.ways.inbound).toMatchObject({ open: 0, pending: 0, total: 0 });
});

test("HBONE refuses TLS 1.2, a missing h2, plaintext, and handshakes that stall", async () => {
  const port = await hbonePort();
  const client = mesh.issue("client");
  await tlsClient(port, { ...client, maxVersion: "TLSv1.2", ALPNProtocols: ["h2"] });
  expect(await lab.failures("hbone", 1)).toEqual({ "tls-error": 1 });
  await tlsClient(port, { ...client, ALPNProtocols: ["http/1.1"] });
  await tlsClient(port, client);
  expect(await lab.failures("hbone", 3)).toEqual({ "tls-error": 1, "no-alpn": 2 });
  const plain = await dialTcp(port);
  const answer = outcome(plain);
  plain.write("GET / HTTP/1.1\r\n\r\n");
  expect(await answer).toBe("ECONNRESET");
  const started = performance.now();
  const stalled = await dialTcp(port);
  stalled.write(Buffer.from("1603010200", "hex"));
  // Bun ends the connection here instead of resetting it.
  expect(["", "ECONNRESET"]).toContain(await outcome(stalled));
  expect(performance.now() - started).toBeGreaterThan(350);
  expect(lab.counters.rows.ways.hbone.failures).toMatchObject({ "not-tls": 1, "handshake-timeout": 1 });
});

test("without a certificate that is valid peers are reset at once, with the reason", async () => {
  mode = "strict";
  const stores: [string, CertificateStore][] = [
    ["own-certificate-expired", mesh.store("vm", { from: -3, to: -1 })],
    ["no-certificate", new CertificateStore(join(mesh.folder, "none"))],
  ];
  for (const [reason, store] of stores) {
    tunnel = lab.inbound(lab.credentials("vm", store), admission);
    for (const [way, port] of [
      ["hbone", await hbonePort()],
      ["inbound", await steeredPort()],
    ] as const) {
      const client = { ...mesh.issue("client"), ALPNProtocols: ["h2"] };
      expect([way, await tlsClient(port, client)]).toEqual([way, "ECONNRESET"]);
      expect(await lab.failures(way, 1)).toEqual({ [reason]: 1 });
      lab.counters.rows.ways[way].failures = {};
    }
  }
});

test("an outbound half of kmesh comes in by sidecar mTLS, and 8 MB pass both ways", async () => {
  mode = "strict";
  const port = await steeredPort();
  const dialer = lab.dialer(lab.credentials("client"));
  const transport: Transport = {
    kind: "istio",
    sni: "outbound_.80_._.vm",
    sans: [{ kind: "exact", value: mesh.id("vm") }],
  };
  const peer = { address: "127.0.0.1", port };
  const { stream, identity } = await dialer.dial({ peer, transport }, peer, new AbortController().signal);
  expect(identity).toBe(mesh.id("vm"));
  const answer = outcome(stream.resume());
  const text = "0123456789abcdef".repeat(1 << 19);
  stream.end(text);
  expect((await answer) === `app got ${text}`).toBe(true);
});

test("double HBONE: a CONNECT inside of a CONNECT, each with its own TLS", async () => {
  const port = await hbonePort();
  // Listens at every address, since the outer CONNECT must not lead to loopback.
  const innerPort = await lab.listen((socket) => void tunnel.serveHbone(socket, () => {}), "0.0.0.0");
  const dialer = lab.dialer(lab.credentials("client"));
  const sans = [{ kind: "exact" as const, value: mesh.id("vm") }];
  const through = async (inner: { authority: string; sans: typeof sans }) => {
    const transport: Transport = { kind: "hbone", authority: `${OWN}:${innerPort}`, port, sans, inner };
    const peer = { address: "127.0.0.1", port: 1 };
    const { stream } = await dialer.dial({ peer, transport }, peer, new AbortController().signal);
    const answer = outcome(stream.resume());
    const text = "0123456789abcdef".repeat(1 << 16);
    stream.end(text);
    return (await answer) === `app got ${text}`;
  };
  expect(await through({ authority: `${OWN}:${app}`, sans })).toBe(true);
  const wrong = [{ kind: "exact" as const, value: mesh.id("other") }];
  await expect(through({ authority: `${OWN}:${app}`, sans: wrong })).rejects.toMatchObject({
    reason: "wrong-san",
  });
  await expect(through({ authority: `${OWN}:1`, sans })).rejects.toMatchObject({
    reason: "peer-unavailable",
  });
  await lab.idle("hbone");
  expect(lab.counters.rows.ways.hbone).toMatchObject({ open: 0, pending: 0, total: 4 });
});

test("a ClientHello that came while the tunnel was busy is no silence", async () => {
  mode = "strict";
  const accepted = Promise.withResolvers<void>();
  const port = await lab.listen((socket) => {
    Object.defineProperty(socket, "localPort", { value: app });
    void tunnel.serveSteered(socket, () => {}, 1);
    accepted.resolve();
  });
  const { key, cert } = mesh.issue("client");
  const hello = await clientHello({ key, cert, ALPNProtocols: ["istio"] });
  const client = await dialTcp(port);
  await accepted.promise;
  client.write(hello);
  // Longer than the tunnel waits for a first byte.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 600);
  const [answer] = (await once(client, "data")) as [Buffer];
  client.destroy();
  // A handshake record: ServerHello.
  expect(answer[0]).toBe(22);
  expect(lab.counters.rows.ways.inbound.failures).toEqual({});
});

/** The first bytes of a TLS client. */
async function clientHello(options: ConnectionOptions): Promise<Buffer> {
  const first = Promise.withResolvers<Buffer>();
  const port = await lab.listen((socket) => {
    socket.once("data", (chunk: Buffer) => {
      first.resolve(chunk);
      socket.destroy();
    });
    socket.resume();
  });
  connectTls({ ...options, port, host: "127.0.0.1" }).on("error", () => {});
  return first.promise;
}

test("the kernel asks whether a silent peer is still there: the app's own keepalive asks the tunnel alone", async () => {
  const port = await steeredPort();
  const plain = await dialTcp(port);
  plain.write("hello");
  const socket = connectTls({
    ...{ host: "127.0.0.1", port, rejectUnauthorized: false, ALPNProtocols: ["istio"] },
    ...mesh.issue("client"),
  });
  lab.defer(() => socket.destroy());
  socket.once("secureConnect", () => socket.write("hello"));
  await eventually("both are carried", () => lab.counters.rows.ways.inbound.open === 2);
  for (const each of [plain, socket])
    await eventually("a keepalive timer", () => timerOf(port, each.localPort ?? 0) === "02");
  plain.destroy();
});

/** What the kernel waits for on a connection (proc_net_tcp): 02 is keepalive. */
function timerOf(from: number, to: number): string | undefined {
  const end = (port: number) => `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const rows = readFileSync("/proc/net/tcp", "latin1")
    .split("\n")
    .map((line) => line.trim().split(/\s+/));
  const row = rows.find(([, local, remote]) => local?.endsWith(end(from)) && remote?.endsWith(end(to)));
  return row?.[5]?.slice(0, 2);
}

test("a connection to the listener itself leads nowhere", async () => {
  const port = await lab.listen(
    (socket) => void tunnel.serveSteered(socket, () => {}, socket.localPort ?? 0),
  );
  const socket = await dialTcp(port);
  const answer = outcome(socket);
  socket.write("hello");
  expect(await answer).toBe("ECONNRESET");
  expect(lab.counters.rows.ways.inbound).toMatchObject({ pending: 0, open: 0, failures: {} });
});

test("openssl s_client comes in by sidecar mTLS, and gets no renegotiation", async () => {
  mode = "strict";
  const port = await steeredPort();
  const { key, cert } = mesh.issue("client");
  const file = (name: string, text: string) => {
    writeFileSync(join(mesh.folder, name), text);
    return join(mesh.folder, name);
  };
  const files = [
    "-key",
    file("c.key", key),
    "-cert",
    file("c.pem", cert),
    "-CAfile",
    join(mesh.folder, "ca.pem"),
  ];
  const run = async (extra: string[], input: string) => {
    const child = spawn("openssl", [
      "s_client",
      "-connect",
      `127.0.0.1:${port}`,
      "-alpn",
      "istio",
      "-verify_return_error",
      ...files,
      ...extra,
    ]);
    lab.defer(() => child.kill("SIGKILL"));
    let text = "";
    child.stdout.on("data", (chunk) => {
      text += chunk;
    });
    child.stderr.on("data", (chunk) => {
      text += chunk;
    });
    await Bun.sleep(150);
    child.stdin.end(input);
    await new Promise((resolve) => child.once("close", resolve));
    return text;
  };
  const text = await run(["-quiet", "-no_ign_eof"], "hello\n");
  expect(text).toContain("depth=0");
  expect(lab.counters.rows.ways.inbound.total).toBe(1);
  // "R" asks for a renegotiation, which TLS 1.2 would allow.
  expect(await run(["-tls1_2"], "R\n")).toMatch(
    /RENEGOTIATING[\s\S]*(no renegotiation|alert|unexpected|reset|closed)/i,
  );
});
