/**
 * One agent hands over to another while connections go on. This is the predecessor's side and the description of the
 * protocol; successor.ts has the other side.
 *
 *     successor                                predecessor
 *                        ◄── starts it ──      serves
 *     hello                    ──►
 *                              ◄──             welcome
 *     its own stream to istiod, first
 *     complete push in memory; touches
 *     no table, takes no lock
 *     ready                    ──►             writes the snapshot, then holds pushes, closes the tables,
 *                              ◄──             lets the locks go: yours
 *     locks, tables, difference, hooks
 *     live                     ──►             (the gap ends)
 *     admin socket, by rename
 *     done                     ──►             tells the service manager
 *                              ◄──             over; ends
 *
 * Until `done` the predecessor takes everything back when the successor fails, dies or is too late. When the predecessor
 * dies, the successor continues as after an ordinary start.
 */

import { rmSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { keptConflict, keptLayouts } from "../datapath/generation/keep.ts";
import { since, type Totals } from "../datapath/tables/totals.ts";
import { reasonOf } from "../errors/reason.ts";
import { listenPrivately } from "../files/private-socket.ts";
import { isLiving, signalTask, type TaskIdentity } from "../kernel/process.ts";
import { faultPoint } from "../runtime/fault.ts";
import { Channel } from "./json-lines.ts";
import { PROTOCOL } from "./protocol.ts";

export type FromSuccessor =
  /** `keep`: the layouts of the maps that all versions share; absent from versions before that check. */
  | { say: "hello"; protocol: number; pid: number; version: string; abi: string; keep?: readonly string[] }
  | { say: "progress"; text: string }
  | { say: "ready"; synced: boolean; services: number; endpoints: number }
  | { say: "live"; writes: number; relinked: number }
  | { say: "done" }
  | { say: "failed"; reason: string };

export type FromPredecessor =
  /** `patience`: milliseconds until the predecessor gives up. */
  { say: "welcome"; synced: boolean; patience: number } | { say: "yours" } | { say: "over" };

/** The agent that hands over. */
export interface Predecessor {
  readonly runDir: string;
  /** Whether istiod's configuration is known and the stream is connected. */
  readonly synced: boolean;
  totals(): Totals;
  /** Writes the snapshot if it lags behind. */
  flush(): Promise<void>;
  /** Closes the tables and releases the locks; pushes are kept for `resume`. */
  pause(): void;
  /** Takes tables and locks back and writes what differs. May throw; the attached programs govern anyway. */
  resume(): Promise<void>;
  /** The counters, read from the pins while the tables are closed. */
  pinnedTotals(): Totals;
  /** The successor is the agent now. */
  succeeded(pid: number): void;
}

export interface HandoverOptions {
  /** Milliseconds for all of it. */
  timeout: number;
  /** Starts the successor, with INVITATION set to `socket` in its environment. Throws when it can't be started. */
  spawn(socket: string): TaskIdentity;
  /** Reports progress to the command that asked. */
  progress(text: string): void;
}

/** The figures that the operator sees afterwards. */
export interface Proof {
  gap_ms: number;
  connections: number;
  failed: number;
  refused: number;
  map_writes: number;
  relinked: number;
  from_version: string;
  to_version: string;
  /** The successor's. */
  pid: number;
  /** The successor knew istiod's configuration when it took over. */
  synced: boolean;
  /** From the command to its end. */
  seconds: number;
}

/** The hand-over failed: the predecessor goes on. */
export class NotHandedOver extends Error {
  override readonly name = "NotHandedOver";
}

/** The predecessor is without its tables for this long at most, milliseconds: connections go on, but no push is applied. */
const TAKE_PATIENCE = 20_000;
/** How long a killed process may take to exit, milliseconds. */
const DEATH_PATIENCE = 5_000;
const LOOK = 100;

/**
 * Starts a successor and hands over to it. Resolves with the proof when the successor is the agent, then this process has
 * to end without touching anything. Rejects with NotHandedOver when it is not: everything is as before then, and the
 * successor is gone.
 */
export async function handOver(
  predecessor: Predecessor,
  options: HandoverOptions,
  from: string,
): Promise<Proof> {
  const began = performance.now();
  const before = predecessor.totals();
  const deadline = new Deadline(options.timeout);
  const path = join(predecessor.runDir, "handover.sock");
  let task: TaskIdentity | undefined;
  let paused = false;
  let listener: Listener | undefined;
  try {
    listener = await Listener.open(path);
    task = options.spawn(path);
    const successor = new SuccessorProcess(task, listener, deadline, options.progress);
    options.progress(`Successor started (pid ${task.tgid})`);
    const hello = await successor.hear("hello");
    if (hello.pid !== task.tgid) throw new NotHandedOver(`pid ${hello.pid} answered in its place`);
    if (hello.protocol !== PROTOCOL)
      throw new NotHandedOver(`the successor (${hello.version}) hands over in another way`);
    const conflict = hello.keep && keptConflict(keptLayouts(), hello.keep);
    if (conflict !== undefined)
      throw new NotHandedOver(
        `the successor (${hello.version}) takes for something else what all versions share in keep/ (${conflict})`,
      );
    successor.say({ say: "welcome", synced: predecessor.synced, patience: deadline.left });
    const ready = await successor.hear("ready");
    options.progress(
      ready.synced
        ? `Successor is in sync: ${ready.services} services, ${ready.endpoints} endpoints`
        : "Successor takes over what the kernel holds: istiod answers neither of us",
    );
    faultPoint("predecessor.ready");
    await predecessor.flush();
    faultPoint("predecessor.flushed");
    deadline.shorten(TAKE_PATIENCE);
    const start = performance.now();
    paused = true;
    predecessor.pause();
    faultPoint("predecessor.paused");
    successor.say({ say: "yours" });
    const live = await successor.hear("live");
    const gap = performance.now() - start;
    faultPoint("predecessor.live");
    await successor.hear("done");
    faultPoint("predecessor.done");
    // Nothing may fail from here on: the successor is the agent.
    const after = countedSince(before, predecessor, options.progress);
    predecessor.succeeded(task.tgid);
    successor.say({ say: "over" });
    faultPoint("predecessor.over");
    return {
      gap_ms: Math.round(gap * 10) / 10,
      ...after,
      map_writes: live.writes,
      relinked: live.relinked,
      from_version: from,
      to_version: hello.version,
      pid: task.tgid,
      synced: ready.synced,
      seconds: Math.round((performance.now() - began) / 100) / 10,
    };
  } catch (error) {
    const reason = reasonOf(error);
    const rest = task ? await end(task) : "";
    let after = "";
    if (paused) {
      try {
        await predecessor.resume();
      } catch (fault) {
        after = `. The tables could not be taken back: ${reasonOf(fault)}`;
      }
    }
    throw new NotHandedOver(`${reason}${rest}${after}`);
  } finally {
    deadline.clear();
    listener?.close();
  }
}

function countedSince(before: Totals, predecessor: Predecessor, progress: (text: string) => void): Totals {
  try {
    return since(before, predecessor.pinnedTotals());
  } catch (error) {
    progress(`The counters can't be read: ${reasonOf(error)}`);
    return since(before, before);
  }
}

/** Kills the process and waits until it has exited and released its locks. Gives a remark when it does not exit. */
async function end(task: TaskIdentity): Promise<string> {
  signalTask(task, "SIGKILL");
  const until = performance.now() + DEATH_PATIENCE;
  while (isLiving(task)) {
    if (performance.now() > until) return ` (pid ${task.tgid} was killed, and is not gone yet)`;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return "";
}

class Deadline {
  readonly #whole: number;
  #at: number;
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #passed = Promise.withResolvers<never>();

  constructor(milliseconds: number) {
    this.#whole = milliseconds;
    this.#at = performance.now() + milliseconds;
    // It may reject while nothing awaits it.
    this.#passed.promise.catch(() => {});
    this.#set();
  }

  /** Milliseconds. */
  get left(): number {
    return Math.max(0, this.#at - performance.now());
  }

  /** Rejects when the time is up. */
  get passed(): Promise<never> {
    return this.#passed.promise;
  }

  /** No later than that long from now. */
  shorten(milliseconds: number): void {
    const at = performance.now() + milliseconds;
    if (at >= this.#at) return;
    this.#at = at;
    this.#set(`it did not succeed this agent within ${milliseconds / 1000} s`);
  }

  clear(): void {
    clearTimeout(this.#timer);
  }

  #set(text = `the successor was not ready within ${this.#whole / 1000} s`): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#passed.reject(new NotHandedOver(text)), this.left);
  }
}

/** The successor as seen by its predecessor. */
class SuccessorProcess {
  readonly #task: TaskIdentity;
  readonly #listener: Listener;
  readonly #deadline: Deadline;
  readonly #progress: (text: string) => void;
  #channel: Channel<FromSuccessor, FromPredecessor> | undefined;

  constructor(task: TaskIdentity, listener: Listener, deadline: Deadline, progress: (text: string) => void) {
    this.#task = task;
    this.#listener = listener;
    this.#deadline = deadline;
    this.#progress = progress;
  }

  say(message: FromPredecessor): void {
    this.#channel?.send(message);
  }

  /** The next message, which has to be `what`. Rejects for another one, when the successor dies, and at the deadline. */
  async hear<What extends FromSuccessor["say"]>(what: What): Promise<FromSuccessor & { say: What }> {
    for (;;) {
      const message = await this.#next();
      if (message === undefined) throw new NotHandedOver(await this.#why());
      if (message.say === "failed") throw new NotHandedOver(`the successor gave up: ${message.reason}`);
      if (message.say === "progress") this.#progress(message.text);
      else if (message.say === what) return message as FromSuccessor & { say: What };
      else throw new NotHandedOver(`the successor said "${message.say}" where "${what}" was due`);
    }
  }

  async #next(): Promise<FromSuccessor | undefined> {
    this.#channel ??= await Promise.race([this.#connected(), this.#deadline.passed]);
    return Promise.race([this.#channel?.receive(), this.#deadline.passed]);
  }

  /** The successor's connection; undefined when it dies before it connects. */
  async #connected(): Promise<Channel<FromSuccessor, FromPredecessor> | undefined> {
    while (this.#deadline.left > 0) {
      const channel = this.#listener.accept();
      if (channel) return channel;
      if (!isLiving(this.#task)) return undefined;
      await Promise.race([this.#listener.news, new Promise((resolve) => setTimeout(resolve, LOOK))]);
    }
    // The deadline is about to reject.
    return this.#deadline.passed;
  }

  async #why(): Promise<string> {
    // Its connection closes a moment before it exits.
    await new Promise((resolve) => setTimeout(resolve, LOOK));
    return isLiving(this.#task)
      ? "the successor hung up"
      : "the successor ended before it was ready; its own words stand in this agent's log";
  }
}

/** The socket that the successor connects to. */
class Listener {
  readonly #server: Server;
  readonly #path: string;
  readonly #channels: Channel<FromSuccessor, FromPredecessor>[] = [];
  readonly #all: Channel<FromSuccessor, FromPredecessor>[] = [];
  #news = Promise.withResolvers<void>();

  private constructor(path: string) {
    this.#path = path;
    this.#server = createServer((socket) => {
      const channel = new Channel<FromSuccessor, FromPredecessor>(socket);
      this.#channels.push(channel);
      this.#all.push(channel);
      this.#news.resolve();
      this.#news = Promise.withResolvers<void>();
    });
  }

  static async open(path: string): Promise<Listener> {
    const listener = new Listener(path);
    await listenPrivately(listener.#server, path);
    return listener;
  }

  /** Resolves with the next connection. */
  get news(): Promise<void> {
    return this.#news.promise;
  }

  accept(): Channel<FromSuccessor, FromPredecessor> | undefined {
    return this.#channels.shift();
  }

  close(): void {
    this.#server.close();
    for (const channel of this.#all) channel.close();
    rmSync(this.#path, { force: true });
  }
}
