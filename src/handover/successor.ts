/** One agent takes over from another that runs: the successor's side of handover.ts, which tells the order of things. */

import { keptLayouts } from "../datapath/generation/keep.ts";
import { ABI_ID } from "../datapath/tables/layout.gen.ts";
import { reasonOf } from "../errors/reason.ts";
import { faultPoint } from "../runtime/fault.ts";
import { version } from "../runtime/version.ts";
import { Channel } from "./json-lines.ts";
import type { FromPredecessor, FromSuccessor } from "./predecessor.ts";
import { PROTOCOL } from "./protocol.ts";

/** The agent that is to take over. */
export interface Successor {
  /** Resolves as soon as the first complete push of istiod is in memory. */
  readonly synced: Promise<void>;
  /** How much istiod sent. */
  size(): { services: number; endpoints: number };
  /** Takes locks and tables and makes them what istiod wants; without a push it takes them as they are. */
  take(): Promise<{ writes: number; relinked: number }>;
  /** Answers for the agent from now on. */
  serve(): Promise<void>;
}

/** Where istiod answers neither the predecessor nor us, milliseconds: the tables are taken as they are then. */
const UNSYNCED_PATIENCE = 5_000;
/** A predecessor that does not answer is given up when its own patience ended that long ago, milliseconds. */
const GRACE = 10_000;
const SILENCE = 10_000;

/** The predecessor went before it handed over. */
export class Succession {
  readonly #channel: Channel<FromPredecessor, FromSuccessor>;

  private constructor(channel: Channel<FromPredecessor, FromSuccessor>) {
    this.#channel = channel;
    const keep = keptLayouts();
    channel.send({ say: "hello", protocol: PROTOCOL, pid: process.pid, version, abi: ABI_ID, keep });
  }

  /** Answers an invitation. undefined when nobody waits any more: this is a start like any other then. */
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

  /** Takes over. Resolves when `candidate` is the agent; rejects when it can't be, or when the predecessor hangs. */
  async take(candidate: Successor): Promise<void> {
    const welcome = await this.#hear("welcome", SILENCE);
    if (welcome) {
      const synced = await this.#wait(candidate, welcome);
      faultPoint("successor.ready");
      this.#channel.send({ say: "ready", synced, ...candidate.size() });
      await this.#hear("yours", welcome.patience + GRACE);
      faultPoint("successor.yours");
    }
    // Also when the predecessor is gone: somebody has to be the agent.
    this.#channel.send({ say: "live", ...(await candidate.take()) });
    faultPoint("successor.live");
    await candidate.serve();
    faultPoint("successor.served");
    this.#channel.send({ say: "done" });
  }

  /** Resolves when the service manager knows us as the agent, or nobody will tell it. */
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

  /** Gives whether istiod's configuration is known. */
  async #wait(candidate: Successor, welcome: FromPredecessor & { say: "welcome" }): Promise<boolean> {
    const synced = candidate.synced.then(() => true);
    const ended = this.#channel.ended.then(() => false);
    // A predecessor that is in sync is the better agent until we are, too.
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

  /** What the predecessor says next; undefined when it is gone. Rejects when it says another thing, or nothing for too long. */
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
