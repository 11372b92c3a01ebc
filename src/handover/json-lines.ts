/** Lines of JSON over a unix socket: how the two agents of a hand-over talk. */
import { connect, type Socket } from "node:net";

/** A line at most: nobody who is meant says more. */
const LINE = 65_536;

export class Channel<In, Out> {
  readonly #socket: Socket;
  readonly #messages: In[] = [];
  #text = "";
  #waiting: (() => void) | undefined;
  #ended = false;
  readonly #end = Promise.withResolvers<void>();

  /** Takes a connected socket over. */
  constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => this.#read(text));
    for (const event of ["end", "close", "error"] as const) socket.on(event, () => this.#over());
  }

  /** Rejects when nobody listens at `path`. */
  static open<In, Out>(path: string): Promise<Channel<In, Out>> {
    return new Promise((resolve, reject) => {
      const socket = connect({ path }, () => {
        socket.off("error", reject);
        resolve(new Channel<In, Out>(socket));
      });
      socket.once("error", reject);
    });
  }

  /** Resolves when the other end is gone, however it went. What it said before can still be received. */
  get ended(): Promise<void> {
    return this.#end.promise;
  }

  /** Says something; nothing happens when the other end is gone. */
  send(message: Out): void {
    if (!this.#ended) this.#socket.write(`${JSON.stringify(message)}\n`);
  }

  /** The next message; undefined when the other end is gone. One caller at a time. */
  async receive(): Promise<In | undefined> {
    while (this.#messages.length === 0 && !this.#ended)
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    return this.#messages.shift();
  }

  close(): void {
    this.#over();
    this.#socket.end();
    this.#socket.unref();
  }

  #read(text: string): void {
    const lines = (this.#text + text).split("\n");
    this.#text = lines.pop() ?? "";
    try {
      for (const line of lines) this.#messages.push(JSON.parse(line));
      if (this.#text.length > LINE) throw new Error("a line without an end");
    } catch {
      // Whoever speaks like that is not the one that is meant.
      this.#socket.destroy();
      this.#over();
    }
    this.#waiting?.();
  }

  #over(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#end.resolve();
    this.#waiting?.();
  }
}
