/** Two tunnel processes that talk to each other, without any agent: apps here, a service there. */
import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { addressOfTarget } from "../../src/mesh/tunnel-address.ts";
import type { TunnelTarget } from "../../src/tunnel/outbound/target.ts";
import { readTunnels } from "../../src/tunnel/process/status-file.ts";
import { lives } from "../../src/tunnel/process/successor.ts";
import { dialTcp, listening, outcome, TestMesh } from "../lab/mesh-member.ts";
import type { ChildSettings } from "./child.ts";

let mesh: TestMesh;
beforeAll(() => {
  mesh = new TestMesh();
});
afterAll(() => mesh.close());

/** A CONNECT to loopback is refused, so the service is reached at another address of this machine. */
const OWN = Object.values(networkInterfaces())
  .flatMap((addresses) => addresses ?? [])
  .find(({ family, internal }) => family === "IPv4" && !internal)?.address;

const pids = new Set<number>();
const cleanup: (() => void)[] = [];
afterEach(() => {
  for (const end of cleanup.splice(0)) end();
  for (const pid of pids) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It has ended.
    }
  }
  pids.clear();
});

let serial = 0;

interface Running {
  child: ChildProcess;
  runDir: string;
  targets: string;
  port(name: string): number;
  log(): string;
}

async function startTunnel(
  account: string,
  names: string[],
  more: Partial<ChildSettings> = {},
): Promise<Running> {
  const runDir = join(mesh.folder, `run-${serial++}`);
  mkdirSync(runDir);
  const targets = join(runDir, "targets.json");
  writeFileSync(targets, "[]");
  const settings: ChildSettings = {
    store: mesh.store(account).folder,
    targets,
    runDir,
    listeners: Object.fromEntries(names.map((name) => [name, { host: "0.0.0.0", port: 0 }])),
    ...more,
  };
  const env = { ...process.env, TUNNEL: JSON.stringify(settings) };
  const child = spawn(process.execPath, [join(import.meta.dir, "child.ts")], {
    env,
    stdio: ["ignore", "ignore", "pipe"],
  });
  if (child.pid !== undefined) pids.add(child.pid);
  let log = "";
  child.stderr?.on("data", (chunk) => {
    log += chunk;
  });
  await until(
    () => log.includes(" accepts (pid "),
    () => log,
  );
  const { listening: addresses } = readTunnels(runDir)[0] ?? { listening: [] };
  const port = (name: string) => addresses.find((each) => each.name === name)?.port ?? 0;
  return { child, runDir, targets, port, log: () => log };
}

async function until(
  holds: () => boolean,
  explain: () => string = () => "",
  patience = 8_000,
): Promise<void> {
  for (const end = performance.now() + patience; !holds(); await Bun.sleep(10))
    if (performance.now() > end) throw new Error(`not within ${patience} ms. ${explain()}`);
}

/** A service that answers each request line by `you said LINE`, and counts its connections. */
async function service(): Promise<{ port: number; server: Server; sockets: Socket[] }> {
  const sockets: Socket[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.push(socket);
    socket.on("error", () => {});
    socket.on("data", (chunk) => socket.write(`you said ${chunk}`));
    socket.on("end", () => socket.end());
  });
  const port = await listening(server, "0.0.0.0");
  cleanup.push(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return { port, server, sockets };
}

/** A pair of tunnels with an HBONE target from the first through the second to a service. */
async function pair(more: Partial<ChildSettings> = {}) {
  const app = await service();
  const there = await startTunnel("web", ["hbone"]);
  const here = await startTunnel("client", ["outbound"], more);
  const target: TunnelTarget = {
    number: 0x010203,
    peer: { address: OWN ?? "", port: app.port },
    transport: {
      kind: "hbone",
      authority: "",
      port: there.port("hbone"),
      sans: [{ kind: "exact", value: mesh.id("web") }],
    },
    service: "web.shop",
    cluster: "outbound|80||web.shop",
  };
  writeFileSync(here.targets, JSON.stringify([target]));
  return { app, here, there, open: () => dialTcp(here.port("outbound"), addressOfTarget(target.number)) };
}

async function say(socket: Socket, text: string): Promise<string> {
  socket.write(text);
  const [chunk] = await once(socket, "data");
  return String(chunk);
}

test("HBONE from one to the other: bytes, half-close, resets both ways, and the status says so", async () => {
  const { app, here, there, open } = await pair();
  const socket = await open();
  expect(await say(socket, "hello")).toBe("you said hello");
  const rest = outcome(socket);
  socket.end("bye");
  expect(await rest).toBe("you said bye");
  // The service resets: the app sees a reset. The app resets: so does the service.
  const reset = await open();
  await say(reset, "a");
  app.sockets[1]?.resetAndDestroy();
  expect(await outcome(reset)).toBe("ECONNRESET");
  const gone = await open();
  await say(gone, "b");
  const seen = outcome(app.sockets[2] as Socket);
  gone.resetAndDestroy();
  expect(await seen).toBe("ECONNRESET");
  // A service that is away: 503, and a reset here.
  app.server.close();
  expect(await outcome(await open())).toBe("ECONNRESET");
  await until(() => readTunnels(there.runDir)[0]?.ways.hbone.failures["connect-refused"] === 1);
  await until(() => readTunnels(here.runDir)[0]?.ways.outbound.failures["peer-unavailable"] === 1);
  const [status] = readTunnels(here.runDir);
  expect(status?.ways.outbound).toMatchObject({
    open: 0,
    pending: 0,
    total: 3,
    failures: { "peer-unavailable": 1 },
  });
  expect(status?.identities).toEqual({ [mesh.id("web")]: 3 });
  expect(status?.services).toMatchObject({ "web.shop": { "peer-unavailable": 1 } });
  expect(readTunnels(there.runDir)[0]?.identities).toEqual({ [mesh.id("client")]: 3 });
  expect(here.log() + there.log()).not.toContain("PRIVATE");
});

test("a hand-over under load: no connect fails, open connections go on, the old process ends with the last one", async () => {
  const { here, there, open } = await pair();
  const held = await Promise.all(Array.from({ length: 10 }, open));
  for (const socket of held) expect(await say(socket, "x")).toBe("you said x");
  let done = 0;
  let failed = 0;
  let stop = false;
  const load = Array.from({ length: 4 }, async () => {
    while (!stop) {
      try {
        const socket = await open();
        const answer = outcome(socket);
        socket.end("load");
        if ((await answer) === "you said load") done++;
        else failed++;
      } catch {
        failed++;
      }
    }
  });
  for (const side of [here, there]) {
    side.child.kill("SIGHUP");
    await until(
      () => readTunnels(side.runDir).length === 2 && readTunnels(side.runDir)[1]?.draining === true,
      side.log,
    );
    const [next] = readTunnels(side.runDir);
    if (next) pids.add(next.pid);
    expect(next).toMatchObject({ draining: false });
    expect(next?.pid).not.toBe(side.child.pid ?? 0);
    await Bun.sleep(200);
  }
  stop = true;
  await Promise.all(load);
  expect(failed).toBe(0);
  expect(done).toBeGreaterThan(20);
  for (const socket of held) expect(await say(socket, "y")).toBe("you said y");
  expect(here.child.exitCode).toBeNull();
  const exits = Promise.all([here, there].map(({ child }) => once(child, "exit")));
  for (const socket of held) socket.end();
  expect((await exits).map(([code]) => code as unknown)).toEqual([0, 0]);
  expect(readTunnels(here.runDir).map(({ draining }) => draining)).toEqual([false]);
});

test("two workers share the sockets: both are counted, a hand-over replaces both, and they end with the main process", async () => {
  const { app, here, open } = await pair({ workers: 2 });
  const workersOf = () => readTunnels(here.runDir)[0]?.workers ?? [];
  const accepting = async (before: number[] = []) => {
    await until(
      () => workersOf().length === 1 && workersOf().every((pid) => !before.includes(pid)),
      here.log,
    );
    const [status] = readTunnels(here.runDir);
    const all = [status?.pid ?? 0, ...workersOf()];
    for (const pid of all) pids.add(pid);
    return all;
  };
  const first = await accepting();
  const held: Socket[] = [];
  for (let i = 0; i < 16; i++) held.push(await open());
  for (const socket of held) expect(await say(socket, "x")).toBe("you said x");
  await until(() => readTunnels(here.runDir)[0]?.ways.outbound.open === 16);
  here.child.kill("SIGHUP");
  const second = await accepting(first);
  await until(() => readTunnels(here.runDir).length === 2 && readTunnels(here.runDir)[1]?.draining === true);
  for (const socket of held) expect(await say(socket, "y")).toBe("you said y");
  expect(readTunnels(here.runDir)[1]?.ways.outbound.open).toBe(16);
  for (const socket of held) socket.end();
  await until(() => first.every((pid) => !lives(pid)), here.log);
  // One that dies is replaced; when the main process dies, its worker drains and ends.
  const [main = 0, worker = 0] = second;
  process.kill(worker, "SIGKILL");
  const third = await accepting(second.slice(1));
  const last = await open();
  expect(await say(last, "z")).toBe("you said z");
  last.destroy();
  for (const socket of app.sockets) socket.destroy();
  process.kill(main, "SIGKILL");
  await until(() => third.every((pid) => !lives(pid)), here.log);
}, 20_000);

test("a successor that can't start leaves the tunnel as it is, and the next try succeeds", async () => {
  const { here, open } = await pair();
  const held = await open();
  await say(held, "a");
  writeFileSync(join(here.runDir, "broken"), "");
  here.child.kill("SIGHUP");
  await until(() => here.log().includes("No hand-over"), here.log);
  expect(await say(await open(), "still")).toBe("you said still");
  rmSync(join(here.runDir, "broken"));
  here.child.kill("SIGHUP");
  await until(() => readTunnels(here.runDir).length === 2, here.log);
  const [next] = readTunnels(here.runDir);
  if (next) pids.add(next.pid);
  expect(await say(await open(), "new")).toBe("you said new");
  expect(await say(held, "old")).toBe("you said old");
});

test("SIGTERM takes no more and waits; a drain timeout resets what is left", async () => {
  const { here, open } = await pair({ drainTimeout: 400 });
  const held = await open();
  await say(held, "a");
  const began = performance.now();
  const exit = once(here.child, "exit");
  here.child.kill("SIGTERM");
  await until(() => readTunnels(here.runDir)[0]?.draining === true);
  await expect(open()).rejects.toThrow(/ECONNREFUSED|Failed to connect/);
  expect(await say(held, "b")).toBe("you said b");
  expect(await outcome(held)).toBe("ECONNRESET");
  expect((await exit)[0]).toBe(0);
  expect(performance.now() - began).toBeGreaterThan(350);
  expect(readTunnels(here.runDir)).toEqual([]);
});

test("SIGKILL leaves a status that nobody believes, and the next process removes it", async () => {
  const { here } = await pair();
  here.child.kill("SIGKILL");
  await once(here.child, "exit");
  expect(readTunnels(here.runDir)).toEqual([]);
});
