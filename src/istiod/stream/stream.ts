import type { BackoffLimits } from "../backoff.ts";
import { openCredentials, type Security } from "../identity/credentials.ts";
import { type Identity, nodeOf } from "../node.ts";
import { formatTarget, type Hosts, parseTarget, type Target } from "../target.ts";
import type { ConnectionTimes } from "./connection.ts";
import { Connections } from "./connections.ts";
import { type Health, HealthReports } from "./health-reports.ts";
import type { PushTimes } from "./push.ts";
import type { ResourceSink } from "./sink.ts";
import type { StreamEvent, StreamStatus } from "./status.ts";
import { Subscriptions } from "./subscriptions.ts";
import type { Mode } from "./types.ts";

export interface StreamOptions {
  /** `HOST:PORT` */
  istiod: string;
  /** Addresses to use instead of a DNS lookup, by name. */
  hosts?: Hosts;
  security: Security;
  identity: Identity;
  sink: ResourceSink;
  /** Default kernel-native. */
  mode?: Mode;
  /** Called for each event; must not throw. */
  on?(event: StreamEvent): void;
  times?: Partial<PushTimes>;
  connection?: Partial<ConnectionTimes>;
  backoff?: BackoffLimits;
}

/**
 * A delta-ADS subscription to istiod's configuration. It connects, subscribes, passes changes to the sink,
 * acknowledges them, and reconnects when the connection ends. A lost connection removes nothing from the sink.
 */
export class IstiodStream {
  readonly #target: Target;
  readonly #plaintext: boolean;
  readonly #connections: Connections;
  readonly #subscriptions: Subscriptions;
  readonly #reports: HealthReports;
  #lastError: { at: number; text: string } | undefined;

  /** Throws an Error with the next step when the target, the identity or a credential file can't be used. */
  constructor(options: StreamOptions) {
    const { security, identity, sink } = options;
    this.#target = parseTarget(options.istiod, options.hosts);
    this.#plaintext = security.kind === "plaintext";
    const node = nodeOf(identity);
    const on = (event: StreamEvent) => {
      if (event.kind === "disconnected" || event.kind === "failed")
        this.#lastError = { at: Date.now(), text: event.reason };
      options.on?.(event);
    };
    this.#subscriptions = new Subscriptions({
      node,
      sink,
      on,
      ...(options.mode ? { mode: options.mode } : {}),
      ...(options.times ? { times: options.times } : {}),
      send: (request) => this.#connections.send(request),
      connected: () => this.#connections.open,
    });
    this.#reports = new HealthReports({
      node,
      refused: (reason) => on({ kind: "health-not-taken", reason }),
    });
    this.#connections = new Connections({
      target: this.#target,
      security,
      identity,
      on,
      ...(options.connection ? { times: options.connection } : {}),
      ...(options.backoff ? { backoff: options.backoff } : {}),
      announcement: () => this.#subscriptions.announcement(),
      inUse: () => this.#subscriptions.begin(),
      answered: (connection) => this.#reports.connected(connection),
      message: (bytes) => {
        const unreadable = this.#subscriptions.receive(bytes);
        // The next connection delivers everything again. Unchanged resources are skipped by their hash.
        if (unreadable !== undefined) this.#connections.fail(unreadable);
      },
      ended: () => {
        this.#reports.disconnected();
        this.#subscriptions.settle();
      },
    });
    requireFiles(security, this.#target);
  }

  /** Begins to connect; returns at once. */
  start(): void {
    this.#connections.start();
  }

  /** Closes the stream. A pending push is not committed. */
  stop(): void {
    this.#subscriptions.stop();
    this.#reports.disconnected();
    this.#connections.stop();
  }

  /**
   * Reports the application's health to istiod, now and on each new connection. Only for a node that has a
   * WorkloadEntry in istiod, by a group or an entry.
   */
  report(health: Health): void {
    this.#reports.tell(health);
  }

  /** Opens a connection with the present credentials; see Connections.renew. */
  renew(): void {
    this.#connections.renew();
  }

  status(): StreamStatus {
    const { connectedSince, disconnectedSince, count } = this.#connections;
    const { lastPush, pendingSince, ...subscribed } = this.#subscriptions.status();
    const { reported, notTaken } = this.#reports;
    return {
      target: formatTarget(this.#target),
      plaintext: this.#plaintext,
      connected: connectedSince !== undefined,
      connections: count,
      ...subscribed,
      ...(connectedSince !== undefined
        ? { connectedSince: wallTime(connectedSince) }
        : disconnectedSince !== undefined
          ? { disconnectedSince: wallTime(disconnectedSince) }
          : {}),
      ...(this.#lastError ? { lastError: this.#lastError } : {}),
      ...(lastPush !== undefined ? { lastPush: wallTime(lastPush) } : {}),
      ...(reported ? { reported } : {}),
      ...(notTaken !== undefined ? { healthNotTaken: notTaken } : {}),
      ...(pendingSince !== undefined ? { pendingSince: wallTime(pendingSince) } : {}),
    };
  }
}

/** Converts a time by performance.now() to milliseconds since the epoch, by the present wall clock. */
function wallTime(at: number): number {
  return Math.round(Date.now() - (performance.now() - at));
}

/**
 * Throws FileError when a credential file can't be used. The token is not required when there was a certificate
 * before: a missing token may be replaced later.
 */
function requireFiles(security: Security, target: Target): void {
  const had = security.kind === "tls" && (security.identity?.roots() ?? "") !== "";
  openCredentials(had ? { kind: "tls", ca: security.ca } : security, target);
}
