import { Client, type ClientDuplexStream, connectivityState, type Metadata } from "@grpc/grpc-js";
import type { Credentials } from "../identity/credentials.ts";
import { dialled, type Target } from "../target.ts";
import { dropPiecesOfMessages } from "./message-pieces.ts";

const PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const UNAVAILABLE = 14;
/** The HTTP/2 flow-control window: how much istiod may send before kmesh has read it, bytes. */
const FLOW_WINDOW = 8 << 20;

/** Times of a connection, milliseconds. */
export interface ConnectionTimes {
  /** Limit for connecting to istiod, name lookup and handshake included. */
  connect: number;
  /** The idle time before a keepalive ping, and the time that istiod has to answer it. */
  keepalive: number;
  keepaliveAnswer: number;
}

export const CONNECTION_TIMES: ConnectionTimes = {
  connect: 5_000,
  keepalive: 30_000,
  keepaliveAnswer: 10_000,
};

/** Callbacks of a connection. `ended` is called exactly once, unless `close` was called. */
export interface ConnectionEvents {
  message(bytes: Buffer): void;
  /** istiod sent GOAWAY: the connection reached its maximum age, or istiod shuts down. The stream still works. */
  aging?(): void;
  ended(status: { code: number; details: string }): void;
}

/**
 * One gRPC channel with one delta-ADS stream. Each attempt has its own channel, so that gRPC's back-off for a dead
 * channel never delays the next attempt. Variables such as https_proxy are ignored.
 */
export class Connection {
  readonly #client: Client;
  readonly #call: ClientDuplexStream<Uint8Array, Buffer>;
  readonly #events: ConnectionEvents;
  #young = true;
  readonly #metadata: Metadata;
  #connectTimer: ReturnType<typeof setTimeout> | undefined;
  #over = false;

  constructor(target: Target, open: Credentials, events: ConnectionEvents, times = CONNECTION_TIMES) {
    this.#events = events;
    this.#metadata = open.metadata;
    dropPiecesOfMessages();
    this.#client = new Client(dialled(target), open.channel, {
      "grpc.primary_user_agent": "kmesh",
      "grpc.enable_http_proxy": 0,
      "grpc.enable_retries": 0,
      "grpc.service_config_disable_resolution": 1,
      "grpc.use_local_subchannel_pool": 1,
      "grpc.max_receive_message_length": -1,
      "grpc.max_send_message_length": -1,
      "grpc.keepalive_time_ms": times.keepalive,
      "grpc.keepalive_timeout_ms": times.keepaliveAnswer,
      "grpc.keepalive_permit_without_calls": 1,
      "grpc-node.flow_control_window": FLOW_WINDOW,
      ...open.options,
    });
    this.#call = this.#stream();
    this.#call.on("data", (bytes: Buffer) => {
      clearTimeout(this.#connectTimer);
      if (this.#young) this.#awaitAge();
      if (!this.#over) events.message(bytes);
    });
    // Each stream ends with a status. "error" repeats a status that is not OK, and must have a listener.
    this.#call.on("error", (error: { code?: number; details?: string; message: string }) =>
      this.#end(error.code ?? UNAVAILABLE, error.details ?? error.message),
    );
    this.#call.on("status", (status) => this.#end(status.code, status.details));
    this.#connectTimer = setTimeout(() => this.#checkConnected(times.connect), times.connect);
  }

  /** Sends one encoded DeltaDiscoveryRequest. Does nothing after the connection has ended. */
  send(request: Uint8Array): void {
    if (!this.#over) this.#call.write(request);
  }

  /**
   * Sends `request` on a second stream of the same channel, and so to the same istiod. Resolves with the status with
   * which istiod ended that stream, or "answered" when it sent a message. Resolves with undefined when neither came
   * within `limit` milliseconds, or the connection has ended. Never rejects.
   */
  tryOut(
    request: Uint8Array,
    limit: number,
  ): Promise<{ code: number; details: string } | "answered" | undefined> {
    if (this.#over) return Promise.resolve(undefined);
    const call = this.#stream();
    return new Promise((resolve) => {
      const timer = setTimeout(() => finish(undefined), limit);
      const finish = (heard: { code: number; details: string } | "answered" | undefined) => {
        clearTimeout(timer);
        call.cancel();
        resolve(this.#over ? undefined : heard);
      };
      call.on("data", () => finish("answered"));
      call.on("error", () => {});
      call.on("status", ({ code, details }) => finish({ code, details }));
      call.write(request);
    });
  }

  /** Closes the stream and the channel. `ended` is not called. */
  close(): void {
    if (this.#over) return;
    this.#release();
  }

  /** The channel leaves the state READY when GOAWAY arrives, while its stream continues. */
  #awaitAge(): void {
    this.#young = false;
    const channel = this.#client.getChannel();
    if (channel.getConnectivityState(false) !== connectivityState.READY) return;
    channel.watchConnectivityState(connectivityState.READY, Infinity, (error) => {
      if (!error && !this.#over) this.#events.aging?.();
    });
  }

  #stream(): ClientDuplexStream<Uint8Array, Buffer> {
    return this.#client.makeBidiStreamRequest(
      PATH,
      (request: Uint8Array) => Buffer.from(request.buffer, request.byteOffset, request.byteLength),
      (response: Buffer) => response,
      this.#metadata,
    );
  }

  #checkConnected(limit: number): void {
    if (this.#client.getChannel().getConnectivityState(false) === connectivityState.READY) return;
    this.#end(UNAVAILABLE, `no answer within ${limit / 1000} s`);
  }

  #end(code: number, details: string): void {
    if (this.#over) return;
    this.#release();
    this.#events.ended({ code, details: details || "without a reason" });
  }

  #release(): void {
    this.#over = true;
    clearTimeout(this.#connectTimer);
    this.#call.cancel();
    this.#client.close();
  }
}
