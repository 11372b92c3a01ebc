/**
 * GET /metrics, /healthz and /readyz over TCP, for scrapers. Off unless the setting `metrics` names an address. A
 * slow reader costs one connection and one body; both are bounded, and no other client waits for it.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface MetricsAnswers {
  /** The content type and the body in parts, for an Accept header. */
  metrics(accept: string | undefined): { type: string; parts: Uint8Array[] };
  /** Undefined when ready, else one sentence with the reason. */
  unready(): string | undefined;
}

/** Most concurrent connections; a scraper needs one. */
const MOST_CONNECTIONS = 64;
/** Time limit for a request, and for the client to read a body, milliseconds. */
const PATIENCE = 10_000;
/** A body is reused for so long, milliseconds: hundreds of concurrent requests cost one body. */
const FRESH = 250;

interface Body {
  parts: Uint8Array[];
  length: number;
  type: string;
  /** performance.now() when it was made. */
  at: number;
}
/** By Accept header. */
type Cache = Map<string, Body>;

export class MetricsServer {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Listens on `host` and `port`. Rejects with the system's Error (EADDRINUSE, EADDRNOTAVAIL, EACCES). */
  static async listen(host: string, port: number, answers: MetricsAnswers): Promise<MetricsServer> {
    const cache: Cache = new Map();
    const server = createServer(
      { requestTimeout: PATIENCE, headersTimeout: PATIENCE, maxHeaderSize: 16_384 },
      (request, response) => {
        response.setTimeout(PATIENCE, () => response.destroy());
        try {
          answer(request, response, answers, cache);
        } catch (error) {
          plain(response, 500, error instanceof Error ? error.message : String(error));
        }
      },
    );
    server.maxConnections = MOST_CONNECTIONS;
    server.keepAliveTimeout = 65_000;
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, host, resolve);
    });
    server.unref();
    return new MetricsServer(server);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

function answer(
  request: IncomingMessage,
  response: ServerResponse,
  answers: MetricsAnswers,
  cache: Cache,
): void {
  const path = (request.url ?? "/").split("?")[0];
  if (request.method !== "GET" && request.method !== "HEAD") {
    plain(response, 405, "only GET is answered");
    return;
  }
  if (path === "/healthz") {
    plain(response, 200, "ok");
    return;
  }
  if (path === "/readyz") {
    const reason = answers.unready();
    plain(response, reason === undefined ? 200 : 503, reason ?? "ok");
    return;
  }
  if (path !== "/metrics") {
    plain(response, 404, "there are /metrics, /healthz and /readyz");
    return;
  }
  const accept = (request.headers.accept ?? "").slice(0, 1024);
  const key = accept.includes("openmetrics") ? accept : "";
  let known = cache.get(key);
  if (!known || performance.now() - known.at > FRESH) {
    const { type, parts } = answers.metrics(accept);
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    known = { parts, length, type, at: performance.now() };
    // Few scrapers, few headers.
    if (cache.size > 4) cache.clear();
    cache.set(key, known);
  }
  response.writeHead(200, { "content-type": known.type, "content-length": known.length });
  if (request.method === "HEAD") response.end();
  else void write(response, known.parts);
}

/** One part after the other: what a slow reader has not taken is the body's own memory. */
async function write(response: ServerResponse, parts: readonly Uint8Array[]): Promise<void> {
  for (const part of parts) {
    if (response.destroyed) return;
    if (!response.write(part)) await drained(response);
  }
  response.end();
}

/** Resolves when more can be written, and when the client is gone. */
function drained(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      response.off("drain", done);
      response.off("close", done);
      resolve();
    };
    response.on("drain", done);
    response.on("close", done);
  });
}

function plain(response: ServerResponse, status: number, text: string): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const body = Buffer.from(`${text}\n`);
  response.writeHead(status, { "content-type": "text/plain; charset=utf-8", "content-length": body.length });
  response.end(body);
}
