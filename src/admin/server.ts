/**
 * The admin API: HTTP on a unix socket that only root may open.
 *
 *     GET  /status            what the agent knows, and what the kernel holds
 *     GET  /dump/received     istiod's resources as the agent keeps them
 *     GET  /dump/model        the mesh that they became
 *     GET  /dump/tables       what the kernel holds
 *     GET  /explain?target=   where a connection would go
 *     POST /restart           another process takes the agent's place; answered line by line (handover/predecessor.ts)
 *     POST /reload            the configuration is read anew, as at SIGHUP
 */

import { once } from "node:events";
import { lstatSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { reasonOf } from "../errors/reason.ts";
import { listenPrivately } from "../files/private-socket.ts";
import { jsonParts } from "./json.ts";

/** Gives what is sent as JSON. What it throws is sent as status 400 when it is a `BadRequest`, else as 500. */
export type Answer = (query: URLSearchParams) => unknown;

/**
 * Does what a POST asks for. Each `tell` is a line of JSON for the client; it goes nowhere when the client went away.
 * What it throws before the first line is sent as a status, as an answer's.
 */
export type Action = (body: unknown, tell: (line: unknown) => void) => Promise<void>;

export class BadRequest extends Error {}

/** Not now: something else is under way. */
export class Conflict extends Error {}

/** A POST's body at most. */
const BODY = 65_536;

export class AdminServer {
  readonly #server: Server;
  readonly #path: string;
  /** Of the socket: another agent may have put its own in its place. */
  readonly #inode: bigint;

  readonly #answering: ReadonlySet<unknown>;

  private constructor(server: Server, path: string, inode: bigint, answering: ReadonlySet<unknown>) {
    this.#server = server;
    this.#path = path;
    this.#inode = inode;
    this.#answering = answering;
  }

  /**
   * Listens on the unix socket `path`, mode 0700. What lies there is replaced by rename, so there is a socket at every
   * moment: only call this while holding the lock. Rejects with what the file system says.
   */
  static async listen(
    path: string,
    answers: Record<string, Answer>,
    actions: Record<string, Action> = {},
  ): Promise<AdminServer> {
    const answering = new Set<ServerResponse>();
    const server = createServer((request, response) => {
      answering.add(response);
      for (const event of ["finish", "close"] as const) response.on(event, () => answering.delete(response));
      const url = new URL(request.url ?? "/", "http://kmesh");
      const action = Object.hasOwn(actions, url.pathname) ? actions[url.pathname] : undefined;
      if (action && request.method === "POST") void act(request, response, action);
      else {
        const answer = Object.hasOwn(answers, url.pathname) ? answers[url.pathname] : undefined;
        void send(response, reply(request.method, url, answer, action !== undefined));
      }
    });
    const inode = await listenPrivately(server, path);
    return new AdminServer(server, path, inode, answering);
  }

  /** Whether the path still leads here. */
  get reachable(): boolean {
    return lstatSync(this.#path, { bigint: true, throwIfNoEntry: false })?.ino === this.#inode;
  }

  /** Resolves when what is being answered is answered, or after a second. */
  async finish(): Promise<void> {
    const until = performance.now() + 1_000;
    while (this.#answering.size > 0 && performance.now() < until)
      await new Promise((resolve) => setTimeout(resolve, 5));
  }

  /** Stops listening, and removes the socket if it is still this one. */
  close(): void {
    if (this.reachable) rmSync(this.#path, { force: true });
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

/** Runs an action, with its lines as they come. */
async function act(request: IncomingMessage, response: ServerResponse, action: Action): Promise<void> {
  let gone = false;
  response.on("close", () => {
    gone = true;
  });
  const tell = (line: unknown) => {
    if (gone) return;
    if (!response.headersSent) response.writeHead(200, { "content-type": "application/x-ndjson" });
    for (const part of jsonParts(line)) response.write(part);
    response.write("\n");
  };
  try {
    await action(await bodyOf(request), tell);
    if (!gone) response.end();
  } catch (error) {
    if (response.headersSent) response.end();
    else await send(response, Promise.resolve(failure(error)));
  }
}

async function bodyOf(request: IncomingMessage): Promise<unknown> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of request) {
    size += part.length;
    if (size > BODY) throw new BadRequest("the body is too long");
    parts.push(part);
  }
  try {
    return JSON.parse(Buffer.concat(parts).toString("utf8"));
  } catch {
    throw new BadRequest("the body is no JSON");
  }
}

async function send(response: ServerResponse, answer: Promise<[number, Uint8Array[]]>): Promise<void> {
  const [code, body] = await answer;
  response.writeHead(code, { "content-type": "application/json" });
  for (const part of body) {
    if (!response.write(part)) await once(response, "drain").catch(() => {});
    if (response.destroyed) return;
  }
  response.end();
}

async function reply(
  method: string | undefined,
  url: URL,
  answer: Answer | undefined,
  takesPost: boolean,
): Promise<[number, Uint8Array[]]> {
  if (takesPost) return [405, jsonParts({ error: "only POST is answered" })];
  if (!answer) return [404, jsonParts({ error: `there is no ${url.pathname}` })];
  if (method !== "GET") return [405, jsonParts({ error: "only GET is answered" })];
  try {
    return [200, jsonParts(await answer(url.searchParams))];
  } catch (error) {
    return failure(error);
  }
}

function failure(error: unknown): [number, Uint8Array[]] {
  const message = reasonOf(error);
  const code = error instanceof BadRequest ? 400 : error instanceof Conflict ? 409 : 500;
  return [code, jsonParts({ error: message })];
}
