/**
 * The admin API: HTTP on a unix socket that only root may open. Every answer but that of /metrics is JSON, also to what is no request.
 *
 *     GET  /status            what the agent knows, and what the kernel holds
 *     GET  /dump/received     istiod's resources as the agent keeps them
 *     GET  /dump/model        the mesh that they became
 *     GET  /dump/tables       what the kernel holds
 *     GET  /explain?target=   where a connection would go
 *     GET  /explain/inbound?from=&to=   whether a peer is let in
 *     GET  /edges?window=     who talks to whom (src/telemetry/model.ts), over so many seconds
 *     GET  /edges/history?edge=   the last hour of one edge
 *     GET  /topology/         the page that shows them, for a browser at the end of ssh -L PORT:SOCKET
 *     GET  /metrics           text for Prometheus, or OpenMetrics
 *     GET  /healthz, /readyz  whether the agent lives; whether connections are governed by what istiod says
 *     POST /log               connections as they end, a line each, until the client goes
 *     POST /restart           another process takes the agent's place; answered line by line (handover/predecessor.ts)
 *     POST /reload            the configuration is read anew, as at SIGHUP
 *     GET  /log-level         how much the agent logs; POST changes it until the next start
 *
 * A second socket gives the same answers, and takes no POST, to the group that the setting admin-group names.
 */

import { once } from "node:events";
import { lstatSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import { codeOf, reasonOf } from "../errors/reason.ts";
import { listenPrivately } from "../files/private-socket.ts";
import { jsonParts } from "./json.ts";

/**
 * Gives the value to send as JSON, or a `TextAnswer`. `accept` is the request's header. A thrown `BadRequest` becomes
 * status 400, any other error 500.
 */
export type Answer = (query: URLSearchParams, accept?: string) => unknown;

/** An answer in another format than JSON. */
export class TextAnswer {
  readonly type: string;
  readonly parts: Uint8Array[];
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    type: string,
    parts: Uint8Array[],
    status = 200,
    headers: Readonly<Record<string, string>> = {},
  ) {
    this.type = type;
    this.parts = parts;
    this.status = status;
    this.headers = headers;
  }
}

/**
 * Handles a POST. Each call of `tell` sends one line of JSON to the client; after the client has disconnected it does
 * nothing. `closed` resolves at the disconnect. Lines that a client does not read are dropped beyond a megabyte. An
 * error before the first line becomes a status, as for an answer.
 */
export type Action = (body: unknown, tell: (line: unknown) => void, closed: Promise<void>) => Promise<void>;

/** The request makes no sense: status 400. */
export class BadRequest extends Error {}

/** Another operation is in progress: status 409. */
export class Conflict extends Error {}

/** Most bytes that are queued for a client which does not read. */
const UNREAD = 1 << 20;

/** Longest body of a POST, bytes. */
const BODY = 65_536;

export class AdminServer {
  readonly #server: Server;
  readonly #path: string;
  /** Inode of the socket: another agent may have replaced it. */
  readonly #inode: bigint;

  readonly #answering: ReadonlySet<unknown>;

  private constructor(server: Server, path: string, inode: bigint, answering: ReadonlySet<unknown>) {
    this.#server = server;
    this.#path = path;
    this.#inode = inode;
    this.#answering = answering;
  }

  /**
   * Listens on the unix socket `path`, mode 0700, or 0770 with `group` if that is given. It replaces an existing
   * socket by rename, so that a socket exists at every moment; call it only while holding the lock. Rejects with the
   * file system's Error.
   */
  static async listen(
    path: string,
    answers: Record<string, Answer>,
    actions: Record<string, Action> = {},
    group?: number,
  ): Promise<AdminServer> {
    const answering = new Set<ServerResponse>();
    // A request without a Host header is answered like any other.
    const server = createServer({ requireHostHeader: false }, (request, response) => {
      answering.add(response);
      for (const event of ["finish", "close"] as const) response.on(event, () => answering.delete(response));
      // A browser reaches this socket through ssh -L: no other site may make it ask for anything.
      const { origin, host } = request.headers;
      if (origin !== undefined && origin !== `http://${host}`)
        return void send(response, refusal(403, "another site asks, which is not answered"));
      const url = urlOf(request);
      if (!url) return void send(response, refusal(400, "the request's target is no path"));
      const action = Object.hasOwn(actions, url.pathname) ? actions[url.pathname] : undefined;
      const answer = Object.hasOwn(answers, url.pathname) ? answers[url.pathname] : undefined;
      if (action && request.method === "POST") void act(request, response, action);
      else void send(response, reply(request, url, answer, action !== undefined));
    });
    refuseWhatIsNoRequest(server);
    const inode = await listenPrivately(server, path, group);
    return new AdminServer(server, path, inode, answering);
  }

  /** Whether the path still is this server's socket. */
  get reachable(): boolean {
    return lstatSync(this.#path, { bigint: true, throwIfNoEntry: false })?.ino === this.#inode;
  }

  /** Resolves when all present answers are sent, or after a second. */
  async finish(): Promise<void> {
    const until = performance.now() + 1_000;
    while (this.#answering.size > 0 && performance.now() < until)
      await new Promise((resolve) => setTimeout(resolve, 5));
  }

  /** Stops listening. Removes the socket if it is still this server's. */
  close(): void {
    if (this.reachable) rmSync(this.#path, { force: true });
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

/**
 * The path and the query of a request; undefined for a target that is no path. The target is appended to a base, not
 * resolved against it: `//x` would name a host.
 */
function urlOf({ url = "/" }: IncomingMessage): URL | undefined {
  return url.startsWith("/") ? (URL.parse(`http://kmesh${url}`) ?? undefined) : undefined;
}

/**
 * Answers malformed requests, and requests for an upgrade or a tunnel, with a 4xx status and JSON, and closes the
 * connection.
 */
function refuseWhatIsNoRequest(server: Server): void {
  server.on("clientError", (error, socket) => {
    const code = codeOf(error) ?? "";
    if (code === "HPE_HEADER_OVERFLOW") end(socket, 431, "Request Header Fields Too Large");
    else if (code.endsWith("TIMEOUT")) end(socket, 408, "Request Timeout");
    else end(socket, 400, "Bad Request");
  });
  server.on("connect", (_, socket) => end(socket, 405, "Method Not Allowed"));
  server.on("upgrade", (_, socket) => end(socket, 400, "Bad Request"));
  server.on(
    "checkExpectation",
    (_, response) => void send(response, refusal(417, "nothing is expected here")),
  );
}

function end(socket: Duplex, status: number, reason: string): void {
  // The client has disconnected, or this is a second fault of the same connection.
  socket.on("error", () => {});
  if (socket.destroyed || !socket.writable) return;
  const body = JSON.stringify({ error: `this is no request that is answered here: ${reason}` });
  socket.end(
    `HTTP/1.1 ${status} ${reason}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
  );
}

/** Runs an action and sends its lines as they come. */
async function act(request: IncomingMessage, response: ServerResponse, action: Action): Promise<void> {
  let gone = false;
  const { promise: closed, resolve } = Promise.withResolvers<void>();
  response.on("close", () => {
    gone = true;
    resolve();
  });
  const tell = (line: unknown) => {
    if (gone || response.writableLength > UNREAD) return;
    if (!response.headersSent) response.writeHead(200, { "content-type": "application/x-ndjson" });
    for (const part of jsonParts(line)) response.write(part);
    response.write("\n");
  };
  try {
    await action(await bodyOf(request), tell, closed);
    if (!gone) response.end();
  } catch (error) {
    if (response.headersSent) response.end();
    else await send(response, Promise.resolve(failure(error)));
  }
}

async function bodyOf(request: IncomingMessage): Promise<unknown> {
  const parts: Buffer[] = [];
  let size = 0;
  try {
    for await (const part of request) {
      size += part.length;
      if (size > BODY) throw new BadRequest("the body is too long");
      parts.push(part);
    }
  } catch (error) {
    throw error instanceof BadRequest ? error : new BadRequest("the body does not arrive whole");
  }
  try {
    return JSON.parse(Buffer.concat(parts).toString("utf8"));
  } catch {
    throw new BadRequest("the body is not JSON");
  }
}

type Reply = [status: number, body: Uint8Array[], type?: string, headers?: Readonly<Record<string, string>>];

async function send(response: ServerResponse, answer: Reply | Promise<Reply>): Promise<void> {
  const [code, body, type = "application/json", headers = {}] = await answer;
  if (response.destroyed) return;
  response.writeHead(code, { ...headers, "content-type": type });
  for (const part of body) {
    if (!response.write(part)) await once(response, "drain").catch(() => {});
    if (response.destroyed) return;
  }
  response.end();
}

async function reply(
  { method, headers }: IncomingMessage,
  url: URL,
  answer: Answer | undefined,
  takesPost: boolean,
): Promise<Reply> {
  if (!answer)
    return takesPost ? refusal(405, "only POST is answered") : refusal(404, `there is no ${url.pathname}`);
  if (method !== "GET") return refusal(405, `only ${takesPost ? "GET and POST are" : "GET is"} answered`);
  try {
    const given = await answer(url.searchParams, headers.accept);
    if (given instanceof TextAnswer) return [given.status, given.parts, given.type, given.headers];
    return [200, jsonParts(given)];
  } catch (error) {
    return failure(error);
  }
}

function refusal(status: number, error: string): Reply {
  return [status, jsonParts({ error })];
}

function failure(error: unknown): Reply {
  return refusal(error instanceof BadRequest ? 400 : error instanceof Conflict ? 409 : 500, reasonOf(error));
}
