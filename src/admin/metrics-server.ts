/**
 * GET /metrics, /healthz and /readyz over TCP, for scrapers. Off unless the setting `metrics` names an address. A
 * slow reader costs one connection and one body; both are bounded, and no other client waits for it.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { PART } from "../telemetry/metrics/exposition.ts";
import { acceptsGzip, gzipped } from "../telemetry/metrics/gzip.ts";

export interface MetricsAnswers {
  /**
   * The content type and the body, for an Accept header. A part is made when it is taken, and valid until the next one is. An
   * empty one says that something else may be done before the next.
   */
  metrics(accept: string | undefined): { type: string; parts: Iterable<Uint8Array> };
  /** Undefined when ready, else one sentence with the reason. */
  unready(): string | undefined;
}

/** Most concurrent connections; a scraper needs one. */
const MOST_CONNECTIONS = 64;
/** Time limit for a request, and for the client to read a body, milliseconds. */
const PATIENCE = 10_000;
/** A body is reused for so long, milliseconds: hundreds of concurrent requests cost one body. */
const FRESH = 250;

/** The agent's other work waits for a scrape no longer than this at a time, milliseconds. */
const SLICE = 4;

/** Parts that nobody reads any more. New memory for each scrape would make the agent's small heap collect garbage. */
const MOST_SPARE = 512;
/** Bytes of one: a little more than a part has. */
const SPARE = PART + (8 << 10);

class Bodies {
  /** By Accept header and compression. */
  readonly #fresh = new Map<string, Body>();
  readonly #spare: Uint8Array[] = [];

  /** One that is fresh, or else what `make` gives. */
  get(accept: string, isGzip: boolean, make: () => ReturnType<MetricsAnswers["metrics"]>): Body {
    const key = `${isGzip} ${accept}`;
    const known = this.#fresh.get(key);
    if (known?.isFresh) return known;
    // Few scrapers, few headers.
    if (known || this.#fresh.size > 4) this.#forget(known ? [[key, known]] : [...this.#fresh]);
    const { type, parts } = make();
    const body = isGzip
      ? new Body(type, gzipped(parts), (part) => part)
      : new Body(type, parts, (part) => this.#copy(part), this.#spare);
    this.#fresh.set(key, body);
    return body;
  }

  #forget(bodies: readonly [key: string, body: Body][]): void {
    for (const [key, body] of bodies) {
      this.#fresh.delete(key);
      body.forget();
    }
  }

  #copy(part: Uint8Array): Uint8Array {
    let memory = this.#spare.pop();
    if (!memory || memory.length < part.length) memory = new Uint8Array(Math.max(part.length, SPARE));
    memory.set(part);
    return memory.subarray(0, part.length);
  }
}

/** One body for all who ask at the same time: made a few milliseconds at a time, while its first parts are sent. */
class Body {
  readonly type: string;
  /** performance.now() when it was asked for. */
  readonly at = performance.now();
  readonly #parts: Uint8Array[] = [];
  #state: "making" | "whole" | "failed" = "making";
  #waiting: (() => void)[] = [];
  readonly #keep: (part: Uint8Array) => Uint8Array;
  readonly #spare: Uint8Array[] | undefined;
  #readers = 0;
  #isForgotten = false;

  /**
   * `keep` gives a part that stays as it is when the next one is made. The memory of parts goes to `spare` when the body is
   * forgotten and read by nobody.
   */
  constructor(
    type: string,
    parts: Iterable<Uint8Array>,
    keep: (part: Uint8Array) => Uint8Array,
    spare?: Uint8Array[],
  ) {
    this.type = type;
    this.#keep = keep;
    this.#spare = spare;
    this.#make(parts).then(
      () => this.#end("whole"),
      () => this.#end("failed"),
    );
  }

  get isFresh(): boolean {
    return this.#state === "making" || (this.#state === "whole" && performance.now() - this.at <= FRESH);
  }

  /** The part of this number as soon as it is made; undefined behind the last one. Rejects when they can't be made. */
  async part(number: number): Promise<Uint8Array | undefined> {
    while (number >= this.#parts.length && this.#state === "making")
      await new Promise<void>((resolve) => {
        this.#waiting.push(resolve);
      });
    if (this.#state === "failed") throw new Error("the metrics could not be made");
    return this.#parts[number];
  }

  /** From now on until `leave`, parts stay as they are. */
  enter(): void {
    this.#readers++;
  }

  leave(): void {
    this.#readers--;
    this.#release();
  }

  /** Nobody enters any more. */
  forget(): void {
    this.#isForgotten = true;
    this.#release();
  }

  #release(): void {
    if (!this.#isForgotten || this.#readers > 0 || this.#state === "making") return;
    const parts = this.#parts.splice(0);
    const spare = this.#spare;
    if (!spare) return;
    for (const part of parts) if (spare.length < MOST_SPARE) spare.push(new Uint8Array(part.buffer));
  }

  async #make(parts: Iterable<Uint8Array>): Promise<void> {
    // The reading before it took its time.
    await new Promise(setImmediate);
    let since = performance.now();
    for (const part of parts) {
      if (part.length > 0) {
        this.#parts.push(this.#keep(part));
        this.#wake();
      }
      if (performance.now() - since < SLICE) continue;
      await new Promise(setImmediate);
      since = performance.now();
    }
  }

  #end(state: "whole" | "failed"): void {
    this.#state = state;
    this.#wake();
    this.#release();
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}

export class MetricsServer {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Listens on `host` and `port`. Rejects with the system's Error (EADDRINUSE, EADDRNOTAVAIL, EACCES). */
  static async listen(host: string, port: number, answers: MetricsAnswers): Promise<MetricsServer> {
    const bodies = new Bodies();
    const server = createServer(
      { requestTimeout: PATIENCE, headersTimeout: PATIENCE, maxHeaderSize: 16_384 },
      (request, response) => {
        response.setTimeout(PATIENCE, () => response.destroy());
        try {
          answer(request, response, answers, bodies);
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
  bodies: Bodies,
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
  const isGzip = acceptsGzip(request.headers["accept-encoding"]?.toString());
  const body = bodies.get(key, isGzip, () => answers.metrics(accept));
  const encoding = isGzip ? { "content-encoding": "gzip" } : {};
  response.writeHead(200, { "content-type": body.type, vary: "Accept, Accept-Encoding", ...encoding });
  if (request.method === "HEAD") response.end();
  else write(response, body).catch(() => response.destroy());
}

/** One part after the other: what a slow reader has not taken is the body's own memory. */
async function write(response: ServerResponse, body: Body): Promise<void> {
  body.enter();
  response.once("close", () => body.leave());
  for (let number = 0; ; number++) {
    const part = await body.part(number);
    if (response.destroyed) return;
    if (!part) break;
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
