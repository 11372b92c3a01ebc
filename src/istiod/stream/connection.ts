import { Client, type ClientDuplexStream, connectivityState, type Metadata } from "@grpc/grpc-js";
import type { Credentials } from "../identity/credentials.ts";
import { dialled, type Target } from "../target.ts";

const PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const UNAVAILABLE = 14;
/** How much istiod may send ahead of us, bytes. */
const FLOW_WINDOW = 8 << 20;

/** Times of a connection, milliseconds. */
export interface ConnectionTimes {
  /** To reach istiod, name lookup and handshake included. */
  connect: number;
  /** Silence after which istiod is asked whether it lives, and how long it has to answer. */
  keepalive: number;
  keepaliveAnswer: number;
}

export const CONNECTION_TIMES: ConnectionTimes = {
  connect: 5_000,
  keepalive: 30_000,
  keepaliveAnswer: 10_000,
};

/** What a connection reports. `ended` comes exactly once, unless we closed it. */
export interface ConnectionEvents {
  message(bytes: Buffer): void;
  /** istiod wants the connection to end soon (GOAWAY: it is old, or istiod stops); the stream still works. */
  aging?(): void;
  ended(status: { code: number; details: string }): void;
}

/**
 * One gRPC channel with one delta-ADS stream on it. Each attempt has a channel of its own, so that the pace of
 * attempts is ours alone and a dead channel's back-off never delays us. Variables such as https_proxy are ignored.
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
    // A stream that ends ends with a status; "error" repeats one that is not OK and must have a listener.
    this.#call.on("error", (error: { code?: number; details?: string; message: string }) =>
      this.#end(error.code ?? UNAVAILABLE, error.details ?? error.message),
    );
    this.#call.on("status", (status) => this.#end(status.code, status.details));
    this.#connectTimer = setTimeout(() => this.#checkConnected(times.connect), times.connect);
  }

  /** Sends one encoded DeltaDiscoveryRequest. Does nothing on a connection that is over. */
  send(request: Uint8Array): void {
    if (!this.#over) this.#call.write(request);
  }

  /**
   * Says `request` on a second stream of the same channel, and so to the same istiod, and hears how it takes that: the
   * status that it ended the stream with, or "answered". undefined when there was nothing to hear within `limit`
   * milliseconds, or the connection is over. Never rejects.
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

  /** Ends the stream and the channel without a report. */
  close(): void {
    if (this.#over) return;
    this.#release();
  }

  /** The channel is no longer ready as soon as the GOAWAY comes, though its stream goes on. */
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
