/**
 * One connection to istiod after another: the first, the next one after an end, and a successor that takes the place of one
 * that still serves. Knows nothing of what is asked for or answered.
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

/** A connection that held for so long starts the back-off anew, milliseconds. */
const STEADY = 10_000;
/** gRPC codes of a stream that ended without anybody being wrong: a restart, a full age, a lost connection. */
const OK = 0;
const UNAVAILABLE = 14;
/** Between attempts to move to a new connection while the old one serves. */
const RENEWAL: BackoffLimits = { first: 1_000, longest: 60_000 };

export interface ConnectionsOptions {
  target: Target;
  security: Security;
  identity: Identity;
  times?: Partial<ConnectionTimes>;
  backoff?: BackoffLimits;
  on(event: StreamEvent): void;
  /** The first message of a connection: who this node is, and what it asks for first. */
  announcement(): Uint8Array;
  /** A connection is the one in use from now on: everything else has to be asked for on it. */
  inUse(): void;
  /** istiod answers on the connection in use for the first time. */
  answered(connection: Connection): void;
  message(bytes: Uint8Array): void;
  /** There is no connection any more; another one follows unless `stop` was called. */
  ended(): void;
}

export class Connections {
  readonly #options: ConnectionsOptions;
  readonly #times: ConnectionTimes;
  readonly #backoff: Backoff;
  readonly #successorBackoff = new Backoff(RENEWAL);
  #connection: Connection | undefined;
  /** Takes the place of the connection as soon as istiod answers on it. */
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

  /** Whether there is a connection, answered or not. */
  get open(): boolean {
    return this.#connection !== undefined;
  }

  /** Since when istiod answers on the present connection; by performance.now(), as all moments here. */
  get connectedSince(): number | undefined {
    return this.#connectedSince;
  }

  /** Since when there is none that istiod answers on. */
  get disconnectedSince(): number | undefined {
    return this.#disconnectedSince;
  }

  /** Connections on which istiod has answered. */
  get count(): number {
    return this.#count;
  }

  /** Begins to connect; returns at once. */
  start(): void {
    if (this.#running) return;
    this.#running = true;
    this.#connect();
  }

  /** Ends for good. */
  stop(): void {
    this.#running = false;
    clearTimeout(this.#retryTimer);
    this.#dropSuccessor();
    this.#connection?.close();
    this.#connection = undefined;
    this.#connectedSince = undefined;
  }

  /** Sends on the connection in use; without one nothing happens. */
  send(request: Uint8Array): void {
    this.#connection?.send(request);
  }

  /**
   * Moves to a connection with the credentials of now. The one in use serves until istiod answers on the new one; when
   * that fails it goes on to serve, and the move is tried again. Without a connection nothing is to be done: the next
   * one has them anyway.
   */
  renew(): void {
    this.#successorBackoff.reset();
    this.#prepareSuccessor();
  }

  /** The connection in use can't go on, for `reason`: it is closed, and another one follows. */
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

  /** A new connection with the credentials of now. Throws FileError. */
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
        // It is old, or istiod goes: another one before it ends.
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

  /** istiod answers on the new connection: it is the connection from now on, and everything is asked for there. */
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

  /** A connection with our certificate that ended unanswered, though istiod is there, may have ended for it. */
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
    // Without a certificate a refused token is the identity's trouble, and told once.
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
