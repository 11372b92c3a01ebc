import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import type { Socket } from "node:net";
import { networkInterfaces } from "node:os";
import type { TLSSocket } from "node:tls";
import { dialTcp, outcome } from "../../../test/lab/mesh-member.ts";
import { eventually } from "../../../test/lab/process.ts";
import { TunnelHalves } from "../../../test/lab/tunnel-halves.ts";
import { Http2Connection } from "../http2/connection.ts";
import { ERROR, encodeFrame, encodeNumber, encodeSettings, FRAME, SETTING } from "../http2/frames.ts";
import type { Headers } from "../http2/hpack.ts";
import { acceptTls } from "../tls/accept.ts";
import type { MeshCredentials } from "../tls/mesh-credentials.ts";
import type { Dialer } from "./dial.ts";
import { HbonePool } from "./hbone-pool.ts";

const OWN = Object.values(networkInterfaces())
  .flatMap((addresses) => addresses ?? [])
  .find(({ family, internal }) => family === "IPv4" && !internal)?.address;

let lab: TunnelHalves;
let credentials: MeshCredentials;
let store: ReturnType<TunnelHalves["mesh"]["store"]>;
let dialer: Dialer;
let handshakes = 0;
let entrance = 0;
let app = 0;
beforeAll(() => {
  lab = new TunnelHalves();
});
afterAll(() => lab.close());
beforeEach(async () => {
  lab.begin();
  handshakes = 0;
  store = lab.mesh.store("app");
  credentials = lab.credentials("app", store);
  dialer = lab.dialer(credentials, { idleFor: 300, handshake: () => handshakes++ });
  entrance = await lab.outbound(dialer);
  app = await lab.app();
});
afterEach(() => lab.end());

/**
 * A kmesh peer by HBONE, and its connections, which it serves once `ready` resolves. Gives the address at which apps reach the
 * app behind it.
 */
async function peer(
  number = 2,
  ready: () => Promise<void> = async () => {},
): Promise<{ at: string; accepted: Socket[] }> {
  const accepted: Socket[] = [];
  const tunnel = lab.inbound(lab.credentials("vm"), {
    decide: () => ({ allowed: true, reason: "test" }),
    mtls: () => "strict",
  });
  const port = await lab.listen((socket) => {
    accepted.push(socket);
    void ready().then(() => tunnel.serveHbone(socket, () => {}));
  });
  return { at: targetOf(number, port), accepted };
}

function targetOf(number: number, port: number, account = "vm"): string {
  const sans = [{ kind: "exact" as const, value: lab.mesh.id(account) }];
  return lab.target(number, 80, { kind: "hbone", authority: `${OWN}:${app}`, port, sans });
}

async function until(true_: () => boolean): Promise<void> {
  await eventually("it is so", true_);
}

test("connections one after the other share one handshake, at the same time as many as windows allow", async () => {
  const { at, accepted } = await peer();
  for (let i = 0; i < 20; i++) expect(await lab.ask(entrance, at, `${i}`)).toBe(`app got ${i}`);
  expect([handshakes, accepted.length]).toEqual([1, 1]);
  // A kmesh peer's windows, 64 KiB in 1 MiB, take 16 streams.
  const open = await Promise.all(Array.from({ length: 32 }, () => dialTcp(entrance, at)));
  await until(() => lab.counters.rows.ways.outbound.open === 32);
  expect(accepted.length).toBeLessThanOrEqual(3);
  const answers = open.map(outcome);
  for (const [i, socket] of open.entries()) socket.end(`${i}`);
  expect(await Promise.all(answers)).toEqual(open.map((_, i) => `app got ${i}`));
  // Nobody needs them any more.
  await until(() => dialer.shared.open === 0);
  expect(lab.counters.rows.ways.outbound).toMatchObject({ open: 0, pending: 0, total: 52, failures: {} });
  expect(lab.counters.rows.identities[lab.mesh.id("vm")]).toBe(52);
});

test("three downloads that nobody reads stall no other stream of their connection", async () => {
  const { at, accepted } = await peer();
  app = await lab.listen((socket) => {
    socket.on("error", () => {});
    socket.once("data", (first) => {
      if (!String(first).startsWith("bulk")) socket.end(`app got ${first}`);
      else for (let i = 0; i < 512; i++) socket.write(Buffer.alloc(1 << 16));
    });
    socket.resume();
  }, "0.0.0.0");
  const transport = lab.targets.get(2)?.transport;
  if (transport?.kind === "hbone") transport.authority = `${OWN}:${app}`;
  await lab.ask(entrance, at, "warm");
  for (let i = 0; i < 3; i++) {
    const unread = await dialTcp(entrance, at);
    lab.defer(() => unread.destroy());
    unread.pause();
    unread.write("bulk");
  }
  await until(() => lab.budget.used > 0);
  await Bun.sleep(200);
  for (let i = 0; i < 10; i++) expect(await lab.ask(entrance, at, `${i}`)).toBe(`app got ${i}`);
  expect([handshakes, accepted.length]).toEqual([1, 1]);
});

test("a new certificate makes new connections; open streams go on by the old one", async () => {
  const { at, accepted } = await peer();
  const old = await dialTcp(entrance, at);
  old.write("a");
  await until(() => lab.counters.rows.ways.outbound.open === 1);
  lab.mesh.renew(store, "renewed");
  credentials.refresh();
  expect(await lab.ask(entrance, at)).toBe("app got hello");
  expect([handshakes, accepted.length]).toEqual([2, 2]);
  expect(Object.keys(lab.counters.rows.identities)).toContain(lab.mesh.id("renewed"));
  const answer = outcome(old);
  old.end("b");
  expect(await answer).toBe("app got ab");
  await until(() => accepted[0]?.destroyed === true);
  // With an expired one no stream is opened, not on an open connection either.
  lab.mesh.renew(store, "late", { from: -3, to: -1 });
  credentials.refresh();
  expect(await lab.ask(entrance, at)).toBe("ECONNRESET");
  expect(lab.counters.rows.ways.outbound.failures).toEqual({ "own-certificate-expired": 1 });
});

test("a peer that may be somebody else gets a connection of its own", async () => {
  const { at } = await peer();
  expect(await lab.ask(entrance, at)).toBe("app got hello");
  const transport = lab.targets.get(2)?.transport;
  const other = targetOf(3, transport?.kind === "hbone" ? transport.port : 0, "other");
  expect(await lab.ask(entrance, other)).toBe("ECONNRESET");
  expect(lab.counters.rows.ways.outbound.failures).toEqual({ "wrong-san": 1 });
});

test("a connection that was lost while it was idle costs no app its connect, nor does GOAWAY", async () => {
  const { at, accepted } = await peer();
  expect(await lab.ask(entrance, at)).toBe("app got hello");
  // The dialler does not see the reset before it sends its next CONNECT.
  accepted[0]?.resetAndDestroy();
  expect(await lab.ask(entrance, at, "again")).toBe("app got again");
  expect(handshakes).toBe(2);
  expect(lab.counters.rows.ways.outbound.failures).toEqual({});
});

test.each([
  ["this tunnel drains", () => dialer.drain()],
  [
    "a new certificate comes",
    () => {
      lab.mesh.renew(store, "renewed");
      credentials.refresh();
    },
  ],
])("all that wait for one connection get it when %s meanwhile", async (_when, happen) => {
  // It keeps in mind how many streams fit, however busy the machine is.
  dialer = lab.dialer(credentials);
  entrance = await lab.outbound(dialer);
  let ready = Promise.resolve();
  const { at, accepted } = await peer(2, () => ready);
  // From the first one it is known that several fit.
  expect(await lab.ask(entrance, at)).toBe("app got hello");
  accepted[0]?.resetAndDestroy();
  await until(() => dialer.shared.open === 0);
  const held = Promise.withResolvers<void>();
  ready = held.promise;
  const waiting = [1, 2, 3].map((i) => lab.ask(entrance, at, `${i}`));
  await until(() => lab.counters.rows.ways.outbound.pending === 3 && accepted.length === 2);
  happen();
  const later = lab.ask(entrance, at, "later");
  await until(() => lab.counters.rows.ways.outbound.pending === 4 && accepted.length === 3);
  held.resolve();
  expect(await Promise.all(waiting)).toEqual(["app got 1", "app got 2", "app got 3"]);
  expect(await later).toBe("app got later");
  expect([accepted.length, lab.counters.rows.ways.outbound.failures]).toEqual([3, {}]);
  // The old connection has ended with its last stream.
  await until(() => accepted[1]?.destroyed === true);
});

/** A peer of bare frames: TLS, then what `serve` writes. */
async function rawPeer(serve: (socket: TLSSocket, nth: number) => void): Promise<string> {
  const vm = lab.credentials("vm");
  let nth = 0;
  const port = await lab.listen((raw) => {
    raw.on("error", () => {});
    void acceptTls(raw, {
      context: vm.current().context("TLSv1.3"),
      alpn: ["h2"],
      trustDomains: ["cluster.local"],
    }).then(({ socket }) => {
      socket.on("error", () => {});
      serve(socket, nth++);
      socket.resume();
    });
  });
  return targetOf(2, port);
}

const OK = Buffer.from("88", "hex");
const HEADERS = (id: number) => encodeFrame(FRAME.headers, 4, id, OK);

test("REFUSED_STREAM and GOAWAY before the answer are tried once more on a new connection", async () => {
  for (const refusal of [
    encodeNumber(FRAME.rstStream, 1, ERROR.refusedStream),
    // The last stream that the peer looked at is 0.
    encodeFrame(FRAME.goaway, 0, 0, Buffer.alloc(8)),
  ]) {
    let connections = 0;
    const at = await rawPeer((socket, nth) => {
      connections++;
      socket.write(encodeSettings([]));
      socket.once("data", () => {
        if (nth === 0) socket.write(refusal);
        else {
          socket.write(HEADERS(1));
          socket.write(encodeFrame(FRAME.data, 1, 1, Buffer.from("hello")));
        }
      });
    });
    const client = await dialTcp(entrance, at);
    lab.defer(() => client.destroy());
    const first = await new Promise((resolve) => client.once("data", (chunk) => resolve(String(chunk))));
    expect([first, connections]).toEqual(["hello", 2]);
  }
});

test("the peer's stream limit and windows bound what shares a connection", async () => {
  // Windows of Envoy's proportion: 96 KiB for 64 KiB streams take one; 1 MiB and a limit of 2 take two.
  for (const [settings, more, expected] of [
    [[], 32 << 10, 4],
    [[[SETTING.maxConcurrentStreams, 2]], 1 << 20, 2],
  ] as const) {
    let connections = 0;
    const at = await rawPeer((socket) => {
      connections++;
      socket.write(encodeSettings(settings.map(([a, b]) => [a, b] as [number, number])));
      socket.write(encodeNumber(FRAME.windowUpdate, 0, more));
      let id = 1;
      socket.on("data", (chunk: Buffer) => {
        // A HEADERS frame of the client.
        for (let at = chunk.indexOf("PRI") === 0 ? 24 : 0; at + 9 <= chunk.length; ) {
          if (chunk[at + 3] === FRAME.headers) {
            socket.write(HEADERS(id));
            id += 2;
          }
          at += 9 + chunk.readUIntBE(at, 3);
        }
      });
    });
    const open: Socket[] = [];
    for (let i = 0; i < 4; i++) {
      const socket = await dialTcp(entrance, at);
      lab.defer(() => socket.destroy());
      open.push(socket);
      await until(() => lab.counters.rows.ways.outbound.open === open.length);
    }
    expect(connections).toBe(expected);
    for (const socket of open) socket.resetAndDestroy();
    await until(() => lab.counters.rows.ways.outbound.open === 0);
  }
});

test("a connection takes no stream after the end of its peer's certificate: another is opened, open streams go on", async () => {
  let opened = 0;
  let notAfter = 0;
  const port = await lab.listen((socket) => {
    const connection = new Http2Connection(socket, {
      role: "server",
      budget: lab.budget,
      request: (stream) => {
        stream.on("error", () => {});
        stream.respond(200);
        stream.pipe(stream);
      },
    });
    lab.defer(() => connection.destroy());
  });
  const pool = new HbonePool(lab.budget);
  lab.defer(() => pool.drain());
  const generation = {};
  const connect = async () => {
    const { signal } = new AbortController();
    const open = async () => {
      opened++;
      return { socket: (await dialTcp(port)) as TLSSocket, notAfter };
    };
    const headers: Headers = [
      [":method", "CONNECT"],
      [":authority", "10.0.0.1:80"],
    ];
    return (
      await pool.connect({ key: "", generation, open, headers: () => headers, patience: 1_000 }, signal)
    ).stream;
  };
  const first = await connect();
  notAfter = Date.now() + 60_000;
  await connect();
  await connect();
  expect(opened).toBe(2);
  const answer = outcome(first.resume());
  first.end("well");
  expect(await answer).toBe("well");
});

test("CONNECT names the app, the service that it asked for, and this machine, as ztunnel does", async () => {
  const vm = lab.credentials("vm");
  const asked = Promise.withResolvers<Headers>();
  const port = await lab.listen(async (raw) => {
    const { socket } = await acceptTls(raw, {
      context: vm.current().context("TLSv1.3"),
      alpn: ["h2"],
      trustDomains: ["cluster.local"],
    });
    const connection = new Http2Connection(socket, {
      role: "server",
      budget: lab.budget,
      request: (stream, headers) => {
        stream.on("error", () => {});
        asked.resolve(headers);
        stream.respond(200);
      },
    });
    lab.defer(() => connection.destroy());
  }, "0.0.0.0");
  const sans = [{ kind: "exact" as const, value: lab.mesh.id("vm") }];
  const { stream } = await dialer.dial(
    {
      peer: { address: `${OWN}`, port: 8080 },
      transport: { kind: "hbone", authority: "", port, sans },
      service: "web.shop.svc.cluster.local:80",
    },
    { address: "127.0.0.1", port: 4711 },
    new AbortController().signal,
  );
  stream.destroy();
  expect(await asked.promise).toEqual([
    [":method", "CONNECT"],
    [":authority", `${OWN}:8080`],
    ["baggage", "service.name=test"],
    ["forwarded", `for="${OWN}:4711";host=web.shop.svc.cluster.local`],
  ]);
});
