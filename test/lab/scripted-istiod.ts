/** For tests: a real gRPC server with scripted responses, and a sink that records its calls. */
import {
  type ChannelOptions,
  Metadata,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type status,
} from "@grpc/grpc-js";
import { discovery } from "../../src/istiod/discovery.gen.js";
import { MalformedResource, type ResourceSink, type ResourceType } from "../../src/istiod/stream/sink.ts";
import { TYPE_URL, typeOfUrl } from "../../src/istiod/stream/types.ts";

const PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

type Request = discovery.DeltaDiscoveryRequest & { type: ResourceType | undefined };

/** The resources of a response: by name, the text that is used as the resource's bytes. */
export interface Scripted {
  version?: string;
  resources?: Record<string, string | Uint8Array>;
  removed?: string[];
  nonce?: string;
  typeUrl?: string;
}

export function encodeResponse(type: ResourceType, response: Scripted): Uint8Array {
  const typeUrl = response.typeUrl ?? TYPE_URL[type];
  return discovery.DeltaDiscoveryResponse.encode({
    systemVersionInfo: response.version ?? "v1",
    typeUrl,
    nonce: response.nonce ?? "n",
    resources: Object.entries(response.resources ?? {}).map(([name, value]) => ({
      name,
      resource: { typeUrl, value: typeof value === "string" ? new TextEncoder().encode(value) : value },
    })),
    removedResources: response.removed ?? [],
  }).finish();
}

/** One stream as the server sees it. */
export class ScriptedStream {
  readonly requests: Request[] = [];
  readonly metadata: Metadata;
  readonly #call: ServerDuplexStream<Buffer, Uint8Array>;
  #nonce = 0;

  constructor(call: ServerDuplexStream<Buffer, Uint8Array>, heard: (request: Request) => void) {
    this.#call = call;
    this.metadata = call.metadata;
    call.on("data", (bytes: Buffer) => {
      const message = discovery.DeltaDiscoveryRequest.decode(bytes);
      const request = Object.assign(message, { type: typeOfUrl(message.typeUrl) });
      this.requests.push(request);
      heard(request);
    });
    call.on("error", () => {});
  }

  /** Sends a response; gives its nonce. */
  send(type: ResourceType, response: Scripted = {}): string {
    const nonce = response.nonce ?? `${type}-${++this.#nonce}`;
    this.sendRaw(encodeResponse(type, { ...response, nonce }));
    return nonce;
  }

  sendRaw(bytes: Uint8Array): void {
    this.#call.write(bytes);
  }

  fail(code: status, details: string): void {
    this.#call.emit("error", Object.assign(new Error(details), { code, details, metadata: new Metadata() }));
  }

  close(): void {
    this.#call.end();
  }

  /** The answers to responses (ACK and NACK), oldest first. */
  get answers(): Request[] {
    return this.requests.filter((request) => request.responseNonce !== "");
  }

  /** All names of a type to which the client is subscribed on this stream. */
  subscribed(type: ResourceType): string[] {
    const names = new Set<string>();
    for (const request of this.requests) {
      if (request.type !== type) continue;
      for (const name of request.resourceNamesSubscribe) names.add(name);
      for (const name of request.resourceNamesUnsubscribe) names.delete(name);
    }
    return [...names].sort();
  }
}

export class ScriptedIstiod {
  readonly streams: ScriptedStream[] = [];
  /** Called for each request of each stream. */
  onRequest: (stream: ScriptedStream, request: Request) => void = () => {};
  port = 0;
  #server: Server | undefined;

  async start(
    port = 0,
    credentials = ServerCredentials.createInsecure(),
    options: ChannelOptions = {},
  ): Promise<void> {
    const server = new Server({ "grpc.max_receive_message_length": -1, ...options });
    server.addService(
      {
        DeltaAggregatedResources: {
          path: PATH,
          requestStream: true,
          responseStream: true,
          requestSerialize: (value: Buffer) => value,
          requestDeserialize: (bytes: Buffer) => bytes,
          responseSerialize: (value: Uint8Array) => Buffer.from(value),
          responseDeserialize: (bytes: Buffer) => bytes,
        },
      },
      {
        DeltaAggregatedResources: (call: ServerDuplexStream<Buffer, Uint8Array>) => {
          const stream: ScriptedStream = new ScriptedStream(call, (request) =>
            this.onRequest(stream, request),
          );
          this.streams.push(stream);
        },
      },
    );
    this.#server = server;
    this.port = await new Promise<number>((resolve, reject) =>
      server.bindAsync(`127.0.0.1:${port}`, credentials, (error, bound) =>
        error ? reject(error) : resolve(bound),
      ),
    );
  }

  get last(): ScriptedStream {
    const stream = this.streams.at(-1);
    if (!stream) throw new Error("no client has connected");
    return stream;
  }

  stop(): void {
    this.#server?.forceShutdown();
    this.#server = undefined;
  }
}

/**
 * Resources are texts here: a cluster `eds NAME` wants endpoints NAME, a listener `rds NAME` a route, and what
 * begins with `bad` is malformed.
 */
export class RecordingSink implements ResourceSink {
  readonly stored = new Map<string, string>();
  readonly calls: string[] = [];
  /** What was visible after each commit. */
  readonly commits: { version: string; first: boolean; stored: Record<string, string> }[] = [];
  awaitsPolicies = false;

  upsert(type: ResourceType, name: string, bytes: Uint8Array): void {
    const text = new TextDecoder().decode(bytes);
    this.calls.push(`upsert ${type} ${name}`);
    if (text.startsWith("bad")) throw new MalformedResource(name, `says ${text}`);
    this.stored.set(`${type} ${name}`, text);
  }

  remove(type: ResourceType, name: string): void {
    this.calls.push(`remove ${type} ${name}`);
    this.stored.delete(`${type} ${name}`);
  }

  wanted(type: "endpoints" | "route"): ReadonlySet<string> {
    const [owner, word] = type === "endpoints" ? ["cluster ", "eds "] : ["listener ", "rds "];
    const names = new Set<string>();
    for (const [key, text] of this.stored) {
      if (key.startsWith(owner) && text.startsWith(word)) names.add(text.slice(word.length));
    }
    return names;
  }

  commit(push: { version: string; first: boolean }): void {
    this.calls.push(`commit ${push.version}`);
    this.commits.push({ ...push, stored: Object.fromEntries(this.stored) });
  }
}

/** Waits until `condition` holds; fails naming `what` after `limit` milliseconds. */
export async function until(condition: () => boolean, what: string, limit = 5_000): Promise<void> {
  const start = performance.now();
  while (!condition()) {
    if (performance.now() - start > limit) throw new Error(`waited ${limit} ms in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
