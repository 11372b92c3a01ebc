/**
 * The sequence of connections to istiod: the first one, the next one after a connection ended, and a successor that
 * replaces a working connection. This file does not know the requests and responses.
 */
import { BACKOFF, Backoff, type BackoffLimits } from "../backoff.ts";
import { FileError } from "../file-error.ts";
import {
  explainRefusal,
  isAway,
  isDistrusted,
  openCredentials,
  type Proof,
  type Security,
  UNAUTHENTICATED,
} from "../identity/credentials.ts";
import type { Identity } from "../node.ts";
import { formatTarget, type Target } from "../target.ts";
import { CONNECTION_TIMES, Connection, type ConnectionTimes } from "./connection.ts";
import type { StreamEvent } from "./status.ts";

/** The back-off restarts after a connection that lasted so long, milliseconds. */
const STEADY = 10_000;
/**
 * gRPC codes of a stream that ended without a fault: istiod restarted, the connection reached its maximum age, or the
 * network broke.
 */
const OK = 0;
const UNAVAILABLE = 14;
/** Delays between attempts to replace a working connection. */
const RENEWAL: BackoffLimits = { first: 1_000, longest: 60_000 };

export interface ConnectionsOptions {
  target: Target;
  security: Security;
  identity: Identity;
  times?: Partial<ConnectionTimes>;
  backoff?: BackoffLimits;
  on(event: StreamEvent): void;
  /** The first message of a connection: the node, and the first subscription. */
  announcement(): Uint8Array;
  /** A connection came into use: subscribe to everything else on it. */
  inUse(): void;
  /** The first message from istiod came on the connection in use. */
  answered(connection: Connection): void;
  message(bytes: Uint8Array): void;
  /** The connection in use ended. Another one follows unless `stop` was called. */
  ended(): void;
}

/**
 * Keeps one connection to istiod open, with back-off between attempts. Owns all connections and timers; `stop` closes
 * them.
 */
export class Connections {
  readonly #options: ConnectionsOptions;
  readonly #times: ConnectionTimes;
  readonly #backoff: Backoff;
  readonly #successorBackoff = new Backoff(RENEWAL);
  #connection: Connection | undefined;
  /** Replaces the connection when istiod's first message comes on it. */
  #successor: Connection | undefined;
  #successorTimer: ReturnType<typeof setTimeout> | undefined;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #running = false;
  #connectedSince: number | undefined;
  #disconnectedSince: number | undefined;
  #count = 0;

  constructor(options: ConnectionsOptions) {
    this.#options = options;
    this.#times = { ...CONNECTION_TIMES, ...options.times };
    this.#backoff = new Backoff(options.backoff ?? BACKOFF);
  }

  /** Whether there is a connection, even if istiod has not answered on it yet. */
  get open(): boolean {
    return this.#connection !== undefined;
  }

  /**
   * When istiod first answered on the present connection, by performance.now() like all times here; undefined while
   * not connected.
   */
  get connectedSince(): number | undefined {
    return this.#connectedSince;
  }

  /** When the last connection ended or the first attempt failed; undefined before that. */
  get disconnectedSince(): number | undefined {
    return this.#disconnectedSince;
  }

  /** Number of connections on which istiod has answered. */
  get count(): number {
    return this.#count;
  }

  /** Begins to connect; returns at once. */
  start(): void {
    if (this.#running) return;
    this.#running = true;
    this.#connect();
  }

  /** Closes every connection and stops connecting. */
  stop(): void {
    this.#running = false;
    clearTimeout(this.#retryTimer);
    this.#dropSuccessor();
    this.#connection?.close();
    this.#connection = undefined;
    this.#connectedSince = undefined;
  }

  /** Sends on the connection in use. Does nothing without one. */
  send(request: Uint8Array): void {
    this.#connection?.send(request);
  }

  /**
   * Opens a connection with the present credentials and replaces the one in use. The old connection stays in use
   * until istiod answers on the new one. When the new one fails, the old one stays and the attempt is repeated. Does
   * nothing without a connection: the next one reads the credentials anyway.
   */
  renew(): void {
    this.#successorBackoff.reset();
    this.#prepareSuccessor();
  }

  /** Closes the connection in use for `reason`. Another one follows. */
  fail(reason: string): void {
    this.#connection?.close();
    this.#ended(reason);
  }

  #connect(): void {
    const { target, security, on } = this.#options;
    on({ kind: "connecting", target: formatTarget(target) });
    try {
      this.#connection = this.#open();
    } catch (error) {
      if (!(error instanceof FileError)) throw error;
      this.#ended((security.kind === "tls" && security.identity?.trouble()) || error.message);
      return;
    }
    this.#connection.send(this.#options.announcement());
    this.#options.inUse();
  }

  /** Opens a connection with the present credentials. Throws FileError. */
  #open(): Connection {
    const { target, security, identity } = this.#options;
    const open = openCredentials(security, target, identity.clusterId);
    const connection: Connection = new Connection(
      target,
      open,
      {
        message: (bytes) => {
          if (connection === this.#successor) this.#succeed(connection);
          else if (this.#connectedSince === undefined) this.#answered(connection, "connected");
          this.#options.message(bytes);
        },
        // istiod will close this connection: open its successor first.
        aging: () => {
          if (connection === this.#connection && !this.#successor) this.renew();
        },
        ended: (status) => {
          const succeeds = connection === this.#successor;
          const answered = !succeeds && this.#connectedSince !== undefined;
          this.#doubtCertificate(status, open.proof, answered);
          const reason = this.#explain(status, open.proof, answered);
          if (succeeds) this.#retrySuccessor(reason);
          else this.#ended(reason);
        },
      },
      this.#times,
    );
    return connection;
  }

  #answered(connection: Connection, kind: "connected" | "renewed"): void {
    this.#connectedSince = performance.now();
    this.#count++;
    this.#options.on({ kind, target: formatTarget(this.#options.target) });
    if (kind === "renewed") this.#options.inUse();
    this.#options.answered(connection);
  }

  #prepareSuccessor(): void {
    this.#dropSuccessor();
    if (this.#connectedSince === undefined) return;
    try {
      this.#successor = this.#open();
    } catch (error) {
      if (!(error instanceof FileError)) throw error;
      this.#retrySuccessor(error.message);
      return;
    }
    this.#successor.send(this.#options.announcement());
  }

  /** istiod answered on the successor: it becomes the connection in use, and everything is subscribed to on it. */
  #succeed(successor: Connection): void {
    this.#connection?.close();
    this.#connection = successor;
    this.#successor = undefined;
    this.#answered(successor, "renewed");
  }

  #retrySuccessor(reason: string): void {
    this.#dropSuccessor();
    const retry = Math.round(this.#successorBackoff.next());
    this.#options.on({ kind: "not-renewed", reason, retry });
    this.#successorTimer = setTimeout(() => this.#prepareSuccessor(), retry);
  }

  #dropSuccessor(): void {
    clearTimeout(this.#successorTimer);
    this.#successor?.close();
    this.#successor = undefined;
  }

  /**
   * istiod may have rejected our certificate when a connection with it ended before the first answer, although istiod
   * is reachable and trusted.
   */
  #doubtCertificate(status: { code: number; details: string }, proof: Proof, answered: boolean): void {
    const { security } = this.#options;
    if (security.kind !== "tls" || proof !== "certificate" || answered) return;
    if (
      status.code === UNAUTHENTICATED ||
      (status.code === UNAVAILABLE && !isAway(status) && !isDistrusted(status))
    )
      security.identity?.doubt();
  }

  #explain(status: { code: number; details: string }, proof: Proof, answered: boolean): string {
    const { target, security, identity } = this.#options;
    if (answered && (status.code === OK || status.code === UNAVAILABLE)) {
      return `istiod at ${formatTarget(target)} closed the stream (${status.details})`;
    }
    // Without a certificate the identity reports the rejected token; the same reason is used here.
    const trouble = security.kind === "tls" ? security.identity?.trouble() : undefined;
    if (status.code === UNAUTHENTICATED && proof !== "certificate" && trouble !== undefined) return trouble;
    return explainRefusal(status, target, security, proof, identity);
  }

  #ended(reason: string): void {
    const now = performance.now();
    const held = this.#connectedSince === undefined ? 0 : Math.max(1, now - this.#connectedSince);
    if (held > 0 || this.#disconnectedSince === undefined) this.#disconnectedSince = now;
    this.#dropSuccessor();
    this.#connection?.close();
    this.#connection = undefined;
    this.#connectedSince = undefined;
    if (held >= STEADY) this.#backoff.reset();
    const retry = Math.round(this.#backoff.next());
    this.#options.on({ kind: "disconnected", reason, held, retry });
    this.#options.ended();
    if (this.#running) this.#retryTimer = setTimeout(() => this.#connect(), retry);
  }
}
