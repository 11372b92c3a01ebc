/**
 * The page on a loopback port, for the browser of whoever runs `kmesh topology --open`.
 *
 * Any web site can send a browser to a loopback port. Therefore the Host must be a loopback name (a site that resolves its own
 * name to 127.0.0.1 is refused), an Origin must be the page's own, and Sec-Fetch-Site must be "same-origin" or "none". Data
 * needs a random token that only the printed URL has. The token follows the #, so no request line and no log has it. The page
 * sends it in a header, which other sites can't do without a CORS preflight, and that is refused.
 *
 * A client that reads slowly or never costs one of `MOST_CONNECTIONS` connections for `PATIENCE`; all share one body.
 */
import { randomBytes, timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { reasonOf } from "../errors/reason.ts";
import { PAGE_FOLDER, PAGE_HEADERS, pageFile } from "./page-files.ts";

/** What the page asks for. The user sees the message of an error. */
export interface PageData {
  /** The document of so many seconds. */
  edges(window: number): Promise<object>;
  /** Undefined for an edge without history. */
  history(edge: string): Promise<object | undefined>;
}

const MOST_CONNECTIONS = 32;
/** Time limit for a request to arrive, and for its answer to be read, milliseconds. */
const PATIENCE = 10_000;
/** Bytes. */
const SLICE = 65_536;
/** A body is reused for so long, milliseconds. */
const FRESH = 500;
/** Most bodies that are kept. */
const MOST_BODIES = 8;
const LONGEST_WINDOW = 3600;

interface Answer {
  status: number;
  type: string;
  body: Buffer;
}

export class PageServer {
  readonly #server: Server;
  readonly #token: string;

  private constructor(server: Server, token: string) {
    this.#server = server;
    this.#token = token;
  }

  /**
   * Listens on 127.0.0.1, on a free port when `port` is 0. `patience` is the time limit for a request and for an answer,
   * milliseconds. Rejects with the system's error (EADDRINUSE, EACCES).
   */
  static async listen(port: number, data: PageData, patience = PATIENCE): Promise<PageServer> {
    const token = randomBytes(24).toString("base64url");
    const cache = new BodyCache();
    /** Open connections, each with the timer that ends it if no request comes. The runtime limits the time between requests. */
    const clients = new Map<Socket, NodeJS.Timeout>();
    const server = createServer({ maxHeaderSize: 16_384 }, (request, response) => {
      const { socket } = request;
      clearTimeout(clients.get(socket));
      const late = setTimeout(() => socket.destroy(), patience);
      // A request's body is never read. Its client gets the answer, and the timer goes on.
      if (!hasBody(request.headers)) response.once("close", () => clearTimeout(late));
      response.on("error", () => {});
      answer(request, token, data, cache)
        .catch((error): Answer => problem(502, reasonOf(error)))
        .then((given) => send(request, response, given))
        .catch(() => response.destroy());
    });
    server.on("connection", (socket: Socket) => {
      if (clients.size >= MOST_CONNECTIONS) {
        socket.destroy();
        return;
      }
      clients.set(
        socket,
        setTimeout(() => socket.destroy(), patience),
      );
      socket.once("close", () => {
        clearTimeout(clients.get(socket));
        clients.delete(socket);
      });
    });
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, "127.0.0.1", resolve);
    });
    return new PageServer(server, token);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** It has the token: show it to this user only. */
  get url(): string {
    return `http://127.0.0.1:${this.port}${PAGE_FOLDER}#${this.#token}`;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

async function answer(
  request: IncomingMessage,
  token: string,
  data: PageData,
  cache: BodyCache,
): Promise<Answer> {
  const foreign = foreignRequest(request.headers);
  if (foreign !== undefined) return problem(403, foreign);
  if (request.method !== "GET" && request.method !== "HEAD") return problem(405, "only GET is answered");
  const url = URL.parse(`http://kmesh${request.url?.startsWith("/") ? request.url : "/"}`);
  if (!url?.pathname.startsWith(PAGE_FOLDER)) return problem(404, `the page is at ${PAGE_FOLDER}`);
  const path = url.pathname.slice(PAGE_FOLDER.length);
  const file = pageFile(path);
  if (file) return { status: 200, ...file };
  if (path !== "edges" && path !== "edges/history") return problem(404, `there is no ${url.pathname}`);
  if (!isAuthorized(request.headers.authorization, token))
    return problem(401, "the token is missing or wrong: open the URL that kmesh topology --open printed");
  if (path === "edges") {
    const window = Number(url.searchParams.get("window") ?? 300);
    if (!Number.isInteger(window) || window < 1 || window > LONGEST_WINDOW)
      return problem(400, `window is a number of seconds, ${LONGEST_WINDOW} at most`);
    return json(await cache.get(`edges ${window}`, () => data.edges(window)));
  }
  const edge = url.searchParams.get("edge") ?? "";
  const history = await cache.get(`history ${edge}`, () => data.history(edge));
  return history ? json(history) : problem(404, "there is no history of this edge");
}

/** Why a request is not the page's own; undefined when it is. */
export function foreignRequest(headers: IncomingMessage["headers"]): string | undefined {
  const host = headers.host ?? "";
  if (!/^(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?$/.test(host))
    return "the Host is no loopback name: the page is for this machine, or the end of an ssh -L";
  if (headers.origin !== undefined && headers.origin !== `http://${host}`)
    return "another site asks, which is not answered";
  const site = headers["sec-fetch-site"];
  if (site !== undefined && site !== "same-origin" && site !== "none")
    return "another site asks, which is not answered";
  return undefined;
}

function hasBody(headers: IncomingMessage["headers"]): boolean {
  return headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;
}

/** In a time that does not depend on how much of the token is right. */
function isAuthorized(header: string | undefined, token: string): boolean {
  const given = Buffer.from(header ?? "");
  const expected = Buffer.from(`Bearer ${token}`);
  return given.length === expected.length && timingSafeEqual(given, expected);
}

/** One body for all who ask at the same time, however long it takes to make. */
class BodyCache {
  /** `at` is when the body was made. */
  readonly #bodies = new Map<string, { at: number; body: Promise<Buffer | undefined> }>();

  get(key: string, make: () => Promise<object | undefined>): Promise<Buffer | undefined> {
    const now = performance.now();
    const known = this.#bodies.get(key);
    if (known && now - known.at < FRESH) return known.body;
    const body = make().then((value) => value && Buffer.from(JSON.stringify(value)));
    this.#bodies.delete(key);
    for (const oldest of this.#bodies.keys()) {
      if (this.#bodies.size < MOST_BODIES) break;
      this.#bodies.delete(oldest);
    }
    const made = { at: Number.POSITIVE_INFINITY, body };
    this.#bodies.set(key, made);
    body.then(
      () => {
        made.at = performance.now();
      },
      // The next request tries again.
      () => {
        if (this.#bodies.get(key) === made) this.#bodies.delete(key);
      },
    );
    return body;
  }
}

function json(body: Buffer | undefined): Answer {
  return { status: 200, type: "application/json", body: body ?? Buffer.alloc(0) };
}

function problem(status: number, error: string): Answer {
  return { status, type: "application/json", body: Buffer.from(JSON.stringify({ error })) };
}

/** Writes slices, each when the last one was sent, because the runtime copies what waits for a client. */
async function send(
  request: IncomingMessage,
  response: ServerResponse,
  { status, type, body }: Answer,
): Promise<void> {
  if (response.destroyed) return;
  response.writeHead(status, { ...PAGE_HEADERS, "content-type": type, "content-length": body.length });
  if (request.method !== "HEAD")
    for (let at = 0; at < body.length; at += SLICE) {
      const isTaken = response.write(body.subarray(at, at + SLICE));
      if (!isTaken && !response.destroyed) await taken(response);
      if (response.destroyed) return;
    }
  response.end();
}

/** Resolves when everything was sent, or when the client is gone. */
async function taken(response: ServerResponse): Promise<void> {
  const either = new AbortController();
  const { signal } = either;
  await Promise.race([once(response, "drain", { signal }), once(response, "close", { signal })]).catch(
    () => {},
  );
  either.abort();
}
