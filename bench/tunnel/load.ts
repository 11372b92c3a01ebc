/** The load that each contender of bench/tunnel.ts carries, and its figures. */

import { readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { cpuTime } from "../lab/measure.ts";

/** Opens a connection of an app to the peer, through a contender. */
export type Connect = () => Promise<Socket>;

const CONNECTIONS = 800;
const AT_ONCE = 16;
const REQUESTS = 10_000;
const HELD = 1_000;
/** Held connections are opened so many at a time: more overflow the peer's accept queue. */
const OPENED_AT_ONCE = 50;
/** Milliseconds until held connections are at rest. */
const REST = 2_500;
/** Small requests while a download runs, and beside downloads that nobody reads. */
const BESIDE = 300;
const BESIDE_UNREAD = 20;
const UNREAD = 3;
/** Milliseconds after which a request counts as starved. */
const STARVED = 2_000;
const BULK = 256 << 20;

/** The row whose largest round counts, since memory that was free already hides what later rounds need. */
export const HELD_ROW = "KB a held connection";

/** What the app at the other end does: a download for a "b", else an echo. */
export function serve(socket: Socket): void {
  socket.on("error", () => {});
  socket.on("data", (chunk: Buffer) => {
    if (chunk[0] === 0x62) pour(socket);
    else socket.write(chunk);
  });
}

/** New connections with one request each. Gives their times, ms. */
export async function fresh(connect: Connect, count: number): Promise<number[]> {
  const times: number[] = [];
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      for (let i = 0; i < count / AT_ONCE; i++) {
        const began = performance.now();
        const socket = await connect();
        await echo(socket);
        times.push(performance.now() - began);
        socket.destroy();
      }
    }),
  );
  return times;
}

/** The figures of one round: of a proxy's processes, and of connections through it. */
export async function measure(pids: () => number[], connect: Connect): Promise<Record<string, number>> {
  const timed = async <T>(act: () => Promise<T>) => {
    const before = sum(pids(), cpuTime);
    const started = performance.now();
    const result = await act();
    const cpu = (sum(pids(), cpuTime) - before) / 1000;
    return { result, cpu, seconds: (performance.now() - started) / 1000 };
  };
  const memory = () => sum(pids(), (pid) => kilobytes(pid, "VmRSS"));
  const before = memory();
  const held = await hold(connect);
  const resident = memory();
  for (const socket of held) socket.destroy();
  await new Promise((later) => setTimeout(later, REST));
  const connections = await timed(() => fresh(connect, CONNECTIONS));
  const kept = await connect();
  await echo(kept);
  const requests = await timed(async () => {
    for (let i = 0; i < REQUESTS; i++) await echo(kept);
  });
  const bulk = await connect();
  const stream = await timed(() => download(bulk));
  bulk.destroy();
  const beside = await requestsBeside(connect, kept);
  kept.destroy();
  const unread = await requestsBesideUnread(connect);
  return {
    "new connections/s": CONNECTIONS / connections.seconds,
    "p99 of a new connection and its answer, ms": quantile(connections.result, 0.99),
    "CPU us a new connection": (connections.cpu / CONNECTIONS) * 1e6,
    "keep-alive requests/s": REQUESTS / requests.seconds,
    "CPU us a request": (requests.cpu / REQUESTS) * 1e6,
    "one stream, MB/s": BULK / 1e6 / stream.seconds,
    "MB of a stream per CPU second": BULK / 1e6 / stream.cpu,
    "p50 of a request beside a download, ms": quantile(beside, 0.5),
    "p99 of a request beside a download, ms": quantile(beside, 0.99),
    "% answered beside 3 unread downloads": (100 * unread.length) / BESIDE_UNREAD,
    "p50 of those, ms": quantile(unread, 0.5),
    [HELD_ROW]: (resident - before) / HELD,
    "most memory, MB": sum(pids(), (pid) => kilobytes(pid, "VmHWM")) / 1024,
  };
}

/** Connections with one request each, at rest. */
async function hold(connect: Connect): Promise<Socket[]> {
  const held: Socket[] = [];
  while (held.length < HELD) {
    const some = await Promise.all(Array.from({ length: OPENED_AT_ONCE }, connect));
    await Promise.all(some.map(echo));
    held.push(...some);
  }
  await new Promise((later) => setTimeout(later, REST));
  return held;
}

async function download(socket: Socket): Promise<void> {
  socket.write("b");
  let left = BULK;
  for await (const chunk of socket) {
    left -= (chunk as Buffer).length;
    if (left <= 0) break;
  }
}

/** Times of small requests on `kept` while downloads run on another connection, ms. */
async function requestsBeside(connect: Connect, kept: Socket): Promise<number[]> {
  const times: number[] = [];
  while (times.length < BESIDE) {
    const bulk = await connect();
    let running = true;
    const over = download(bulk).finally(() => {
      running = false;
    });
    while (running && times.length < BESIDE) {
      const began = performance.now();
      await echo(kept);
      times.push(performance.now() - began);
    }
    bulk.destroy();
    await over.catch(() => {});
  }
  return times;
}

/** Times of new connections with one request each, beside downloads that nobody reads, ms. Those without an answer are left out. */
async function requestsBesideUnread(connect: Connect): Promise<number[]> {
  const unread = await Promise.all(Array.from({ length: UNREAD }, connect));
  for (const socket of unread) {
    socket.on("error", () => {});
    socket.pause();
    socket.write("b");
  }
  await new Promise((later) => setTimeout(later, 300));
  const times: number[] = [];
  for (let i = 0; i < BESIDE_UNREAD; i++) {
    const began = performance.now();
    const socket = await connect();
    const starved = new Promise<boolean>((resolve) => setTimeout(resolve, STARVED, true));
    const answered = echo(socket).then(
      () => false,
      () => true,
    );
    if (!(await Promise.race([answered, starved]))) times.push(performance.now() - began);
    socket.on("error", () => {});
    socket.destroy();
  }
  for (const socket of unread) socket.destroy();
  return times;
}

function echo(socket: Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once("data", () => {
      socket.off("error", reject);
      resolve();
    });
    socket.once("error", reject);
    socket.write("a request of some length");
  });
}

function pour(socket: Socket): void {
  const block = Buffer.alloc(64 * 1024);
  let left = BULK;
  const more = () => {
    while (left > 0) {
      left -= block.length;
      if (!socket.write(block)) {
        socket.once("drain", more);
        return;
      }
    }
  };
  more();
}

function sum(pids: readonly number[], of: (pid: number) => number): number {
  return pids.reduce((all, pid) => all + of(pid), 0);
}

/** A size in the status of a process (proc(5)). */
function kilobytes(pid: number, name: "VmRSS" | "VmHWM"): number {
  const text = readFileSync(`/proc/${pid}/status`, "latin1");
  return Number(new RegExp(`${name}:\\s+(\\d+)`).exec(text)?.[1]);
}

function quantile(numbers: readonly number[], share: number): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}
