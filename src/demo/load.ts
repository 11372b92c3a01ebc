/** Connects to one service address, like an ordinary app. */
import { Resolver } from "node:dns";
import { connect, type Socket } from "node:net";
import { emptyLedger, type Ledger } from "./ledger.ts";
import { eachLine } from "./upstream.ts";

export interface LoadOptions {
  address: string;
  port: number;
  /** New connections per second. */
  rate: number;
  /** Connections that stay open and send a line every `beat` milliseconds. */
  longLived: number;
  beat: number;
  /** Milliseconds after which an unanswered connection counts as failed, or a silent one as cut. */
  patience: number;
  /** The name to query, from a missing server at 127.0.0.1. The answer must be `address`. Absent: no queries. */
  name?: string;
}

/** Interval of the queries, milliseconds. */
const QUERY = 20;

export class Load {
  readonly ledger: Ledger = emptyLedger();
  readonly #options: LoadOptions;
  readonly #open = new Set<Socket>();
  #pacer: ReturnType<typeof setInterval> | undefined;
  #stopping = false;
  #queries: ReturnType<typeof setInterval> | undefined;

  constructor(options: LoadOptions) {
    this.#options = options;
  }

  /** Opens the long-lived connections and starts making new ones. */
  start(): void {
    for (let i = 0; i < this.#options.longLived; i++) this.#stay(i);
    this.#askForName();
    const began = performance.now();
    let asked = 0;
    this.#pacer = setInterval(() => {
      // By the clock, not by the tick: a late tick catches up.
      const due = Math.floor(((performance.now() - began) * this.#options.rate) / 1000);
      for (; asked < due; asked++) this.#once();
    }, 5);
  }

  /** Stops new connections, waits for those in progress, then ends the long-lived ones. */
  async stop(): Promise<Ledger> {
    clearInterval(this.#pacer);
    clearInterval(this.#queries);
    const deadline = performance.now() + this.#options.patience + 500;
    while (this.#open.size > this.ledger.open && performance.now() < deadline) await sleep(10);
    this.#stopping = true;
    for (const socket of this.#open) socket.destroy();
    return this.ledger;
  }

  #askForName(): void {
    const { name, address, patience } = this.#options;
    if (name === undefined) return;
    const resolver = new Resolver({ timeout: patience, tries: 1 });
    resolver.setServers(["127.0.0.1"]);
    this.#queries = setInterval(() => {
      resolver.resolve4(name, (error, addresses) => {
        if (this.#stopping) return;
        if (!error && addresses.length === 1 && addresses[0] === address) this.ledger.resolved++;
        else {
          this.ledger.unresolved++;
          count(this.ledger.reasons, error ? `name: ${error.code}` : "name: another address");
        }
      });
    }, QUERY);
  }

  #once(): void {
    const socket = this.#dial();
    let over = false;
    const end = (reason: string | undefined, upstream = "") => {
      if (over) return;
      over = true;
      this.#open.delete(socket);
      socket.destroy();
      if (this.#stopping) return;
      if (reason === undefined) {
        this.ledger.made++;
        count(this.ledger.byUpstream, upstream);
      } else {
        this.ledger.failed++;
        count(this.ledger.reasons, reason);
      }
    };
    socket.setTimeout(this.#options.patience, () => end("no answer"));
    socket.on("error", (error) => end(codeOf(error)));
    socket.on("close", () => end("closed without an answer"));
    socket.on("connect", () => socket.write("hello\n"));
    eachLine(socket, (line) => end(undefined, line.split(" ")[0]));
  }

  #stay(id: number): void {
    const socket = this.#dial();
    let beats: ReturnType<typeof setInterval> | undefined;
    let connected = false;
    let over = false;
    const end = (reason: string) => {
      if (over) return;
      over = true;
      clearInterval(beats);
      this.#open.delete(socket);
      socket.destroy();
      if (connected) this.ledger.open--;
      if (this.#stopping) return;
      if (connected) this.ledger.cut++;
      else this.ledger.failed++;
      count(this.ledger.reasons, `long-lived: ${reason}`);
    };
    // Not the socket's own timeout, which our own writes would reset.
    let heard = performance.now();
    socket.on("error", (error) => end(codeOf(error)));
    socket.on("close", () => end("closed"));
    let sent = 0;
    socket.on("connect", () => {
      connected = true;
      this.ledger.open++;
      heard = performance.now();
      beats = setInterval(() => {
        if (performance.now() - heard > this.#options.patience) end("silent");
        else socket.write(`beat ${id} ${sent++}\n`);
      }, this.#options.beat);
    });
    let upstream: string | undefined;
    eachLine(socket, (line) => {
      heard = performance.now();
      const [name] = line.split(" ");
      upstream ??= name;
      if (name === upstream && line.includes(` beat ${id} `)) this.ledger.answers++;
      else end("answered by another");
    });
  }

  #dial(): Socket {
    const { address, port } = this.#options;
    const socket = connect({ host: address, port, noDelay: true });
    this.#open.add(socket);
    socket.on("connect", () => {
      if (socket.remoteAddress !== address || socket.remotePort !== port) this.ledger.wrongPeer++;
    });
    return socket;
  }
}

function count(counts: Record<string, number>, key: string): void {
  counts[key] = (counts[key] ?? 0) + 1;
}

function codeOf(error: Error): string {
  return "code" in error ? String(error.code) : error.message;
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
