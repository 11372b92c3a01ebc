/** The successor's side of a hand-over between two agents; predecessor.ts describes the protocol. */

import { keptLayouts } from "../datapath/generation/keep.ts";
import { ABI_ID } from "../datapath/tables/layout.gen.ts";
import { reasonOf } from "../errors/reason.ts";
import { faultPoint } from "../runtime/fault.ts";
import { version } from "../runtime/version.ts";
import { Channel } from "./json-lines.ts";
import type { FromPredecessor, FromSuccessor } from "./predecessor.ts";
import { PROTOCOL } from "./protocol.ts";

/** The agent that will take over. */
export interface Successor {
  /** Resolves as soon as the first complete push of istiod is in memory. */
  readonly synced: Promise<void>;
  /** How much istiod sent. */
  size(): { services: number; endpoints: number };
  /** Acquires locks and tables and applies the first push; without a push it adopts the tables as they are. */
  take(): Promise<{ writes: number; relinked: number }>;
  /** Serves the admin socket from now on. */
  serve(): Promise<void>;
}

/** When istiod answers neither agent, the tables are adopted as they are after this time, milliseconds. */
const UNSYNCED_PATIENCE = 5_000;
/** How long after the end of its own deadline a silent predecessor is given up, milliseconds. */
const GRACE = 10_000;
const SILENCE = 10_000;

/** The connection to the predecessor. */
export class Succession {
  readonly #channel: Channel<FromPredecessor, FromSuccessor>;

  private constructor(channel: Channel<FromPredecessor, FromSuccessor>) {
    this.#channel = channel;
    const keep = keptLayouts();
    channel.send({ say: "hello", protocol: PROTOCOL, pid: process.pid, version, abi: ABI_ID, keep });
  }

  /** Connects to the predecessor. Gives undefined when none listens any more: this is an ordinary start then. */
  static async answer(socket: string): Promise<Succession | undefined> {
    try {
      return new Succession(await Channel.open(socket));
    } catch {
      return undefined;
    }
  }

  progress(text: string): void {
    this.#channel.send({ say: "progress", text });
  }

  /** Takes over. Resolves when `candidate` is the agent; rejects when it fails, or when the predecessor hangs. */
  async take(candidate: Successor): Promise<void> {
    const welcome = await this.#hear("welcome", SILENCE);
    if (welcome) {
      const synced = await this.#wait(candidate, welcome);
      faultPoint("successor.ready");
      this.#channel.send({ say: "ready", synced, ...candidate.size() });
      await this.#hear("yours", welcome.patience + GRACE);
      faultPoint("successor.yours");
    }
    // Also when the predecessor has died: then this process has to be the agent.
    this.#channel.send({ say: "live", ...(await candidate.take()) });
    faultPoint("successor.live");
    await candidate.serve();
    faultPoint("successor.served");
    this.#channel.send({ say: "done" });
  }

  /** Resolves when the predecessor has told the service manager, or has died. */
  async acknowledged(): Promise<void> {
    for (let message = await this.#channel.receive(); message !== undefined; ) {
      if (message.say === "over") break;
      message = await this.#channel.receive();
    }
    this.#channel.close();
  }

  failed(error: unknown): void {
    this.#channel.send({ say: "failed", reason: reasonOf(error) });
  }

  /** Waits for the first push. Gives whether istiod's configuration is known. */
  async #wait(candidate: Successor, welcome: FromPredecessor & { say: "welcome" }): Promise<boolean> {
    const synced = candidate.synced.then(() => true);
    const ended = this.#channel.ended.then(() => false);
    // A predecessor that is in sync stays the agent until this one is, too.
    if (welcome.synced) return Promise.race([synced, ended]);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const patience = new Promise<boolean>((resolve) => {
      timer = setTimeout(() => resolve(false), Math.min(UNSYNCED_PATIENCE, welcome.patience / 2));
    });
    try {
      return await Promise.race([synced, ended, patience]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** The next message; undefined when the predecessor has died. Rejects for another message and after `patience`. */
  async #hear<What extends FromPredecessor["say"]>(
    what: What,
    patience: number,
  ): Promise<(FromPredecessor & { say: What }) | undefined> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new Error("the agent that hands over does not answer: this one ends, that one stays")),
        patience,
      );
    });
    try {
      const message = await Promise.race([this.#channel.receive(), late]);
      if (message === undefined || message.say === what)
        return message as (FromPredecessor & { say: What }) | undefined;
      throw new Error(`the agent that hands over said "${message.say}" where "${what}" was due`);
    } finally {
      clearTimeout(timer);
    }
  }
}
