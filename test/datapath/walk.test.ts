/** The walk over TCP sockets goes in pieces: on a machine with many of them, pushes must not wait for the whole. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SocketIterator } from "../../src/kernel/iterator.ts";
import { BpfObject } from "../../src/kernel/object.ts";
import { asset } from "../../src/runtime/assets.ts";
import { Counting } from "../../src/telemetry/counters/counting.ts";
import { readRows } from "../../src/telemetry/counters/rows.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, OwnedProcess } from "../lab/process.ts";

const PORT = 8080;
const CONNECTIONS = 1_200;
/** Holds both ends of the connections. */
const HOLD = `
import signal, socket
listener = socket.create_server(("127.0.0.1", ${PORT}), backlog=64)
held = []
for _ in range(${CONNECTIONS}):
    held += [socket.create_connection(("127.0.0.1", ${PORT})), listener.accept()[0]]
print("ready", flush=True)
signal.pause()
`;

const folder = mkdtempSync(join(tmpdir(), "kmesh-walk-"));
let namespace: NetworkNamespace | undefined;
let holder: OwnedProcess | undefined;
let path = "";
beforeAll(async () => {
  namespace = await NetworkNamespace.create("walk");
  path = namespace.path;
  const log = join(folder, "holder.log");
  const command = ["/usr/bin/python3", "-u", "-c", HOLD];
  const started = new OwnedProcess({ name: "holder", log, command, netns: path });
  holder = started;
  await eventually("connections are open", () => started.output().includes("ready"));
});
afterAll(async () => {
  await holder?.stop("SIGKILL");
  await namespace?.remove();
  rmSync(folder, { recursive: true, force: true });
});

test("pieces find each accepted connection once, whether they are all taken or not", () => {
  using object = BpfObject.open(asset("flush.bpf.o"), "flush");
  // The walk alone: it needs no sockets of ours.
  for (const name of ["flush", "flush_accepted"]) object.skipProgram(name);
  object.load();
  using traffic = object.map("traffic");
  using ports = object.map("served_ports");
  using callers = object.map("caller_rows");
  const program = object.program("see_accepted");
  using walk = SocketIterator.overTcp(program);
  program.close();
  const counting = new Counting(traffic, ports);
  const opened = () => readRows(callers).reduce((sum, { counters }) => sum + counters.opened, 0);
  try {
    counting.serve([PORT]);
    const left = walk.pieces(path);
    expect(left.next().done).toBe(false);
    expect(opened()).toBeWithin(0, CONNECTIONS);
    left.return();
    let pieces = 1;
    for (const all = walk.pieces(path); !all.next().done; ) pieces++;
    // Both ends are visited, 512 in a piece.
    expect(pieces).toBeWithin(4, 8);
    expect(opened()).toBe(CONNECTIONS);
    walk.run(path);
    expect(opened()).toBe(CONNECTIONS);
  } finally {
    counting.close();
  }
});
