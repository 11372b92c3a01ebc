import { reasonOf } from "../../errors/reason.ts";
import { hash64 } from "../../runtime/hash.ts";
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
import { type Identity, nodeOf } from "../node.ts";
import { formatTarget, type Hosts, parseTarget, type Target } from "../target.ts";
import { CONNECTION_TIMES, Connection, type ConnectionTimes } from "./connection.ts";
import { type Health, HealthReports } from "./health-reports.ts";
import { PUSH_TIMES, Push, type PushTimes } from "./push.ts";
import { acknowledge, askAll, type Refusal, shorten, subscribe, unsubscribe } from "./request.ts";
import { type Envelope, eachResource, type RawResource, readEnvelope } from "./response.ts";
import { MalformedResource, type ResourceSink, type ResourceType } from "./sink.ts";
import type { StreamEvent, StreamStatus, TypeStatus } from "./status.ts";
import { Subscription } from "./subscription.ts";
import { isWildcard, TYPE_URL, TYPES, typeOfUrl } from "./types.ts";

/** A connection that held for so long starts the back-off anew, milliseconds. */
const STEADY = 10_000;
/** gRPC codes of a stream that ended without anybody being wrong: a restart, a full age, a lost connection. */
const OK = 0;
const UNAVAILABLE = 14;
/** Between attempts to move to a new connection while the old one serves. */
const RENEWAL: BackoffLimits = { first: 1_000, longest: 60_000 };

export interface StreamOptions {
  /** `HOST:PORT` */
  istiod: string;
  /** Addresses of names that are not to be looked up. */
  hosts?: Hosts;
  security: Security;
  identity: Identity;
  sink: ResourceSink;
  /** Told of what happens; must not throw. */
  on?(event: StreamEvent): void;
  times?: Partial<PushTimes>;
  connection?: Partial<ConnectionTimes>;
  backoff?: BackoffLimits;
}

/**
 * istiod's configuration as one never-ending delta-ADS stream: connects, subscribes, hands what changed to the
 * sink, acknowledges, and begins again when the connection is lost. What the sink holds is never taken back for
 * a lost connection.
 */
export class IstiodStream {
  readonly #target: Target;
  readonly #security: Security;
  readonly #identity: Identity;
  readonly #node: ReturnType<typeof nodeOf>;
  readonly #sink: ResourceSink;
  readonly #on: (event: StreamEvent) => void;
  readonly #connectionTimes: ConnectionTimes;
  readonly #backoff: Backoff;
  readonly #push: Push;
  readonly #reports: HealthReports;
  readonly #types: Readonly<Record<ResourceType, Subscription>> = {
    cluster: new Subscription("cluster"),
    endpoints: new Subscription("endpoints"),
    listener: new Subscription("listener"),
    route: new Subscription("route"),
    names: new Subscription("names"),
  };

  #connection: Connection | undefined;
  /** Takes the place of the connection as soon as istiod answers on it. */
  #successor: Connection | undefined;
  #successorTimer: ReturnType<typeof setTimeout> | undefined;
  readonly #successorBackoff = new Backoff(RENEWAL);
  #running = false;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #commitTimer: ReturnType<typeof setTimeout> | undefined;
  #synced = false;
  // Moments by performance.now(): a wall clock that is set meanwhile makes no connection older or younger.
  #connectedSince: number | undefined;
  #disconnectedSince: number | undefined;
  #connections = 0;
  #pushes = 0;
  #lastPush: number | undefined;
  #version = "";
  #lastError: { at: number; text: string } | undefined;

  /** Throws an Error with the next step when the target, the identity or a credential file can't be used. */
  constructor(options: StreamOptions) {
    this.#target = parseTarget(options.istiod, options.hosts);
    this.#security = options.security;
    this.#identity = options.identity;
    this.#node = nodeOf(options.identity);
    this.#sink = options.sink;
    this.#on = options.on ?? (() => {});
    this.#connectionTimes = { ...CONNECTION_TIMES, ...options.connection };
    this.#backoff = new Backoff(options.backoff ?? BACKOFF);
    this.#push = new Push({ ...PUSH_TIMES, ...options.times });
    this.#reports = new HealthReports({
      node: this.#node,
      refused: (reason) => this.#on({ kind: "health-not-taken", reason }),
    });
    requireFiles(options.security, this.#target);
  }

  /** Begins to connect; returns at once. */
  start(): void {
    if (this.#running) return;
    this.#running = true;
    this.#connect();
  }

  /** Closes the stream for good. What is pending is not committed. */
  stop(): void {
    this.#running = false;
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#commitTimer);
    this.#dropSuccessor();
    this.#reports.disconnected();
    this.#connection?.close();
    this.#connection = undefined;
    this.#connectedSince = undefined;
  }

  /**
   * Tells istiod how the application is: now, and again on each new connection. Only for a node that istiod has a
   * WorkloadEntry of: with a group or an entry.
   */
  report(health: Health): void {
    this.#reports.tell(health);
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

  status(): StreamStatus {
    const types = Object.fromEntries(
      TYPES.map((type) => [type, typeStatus(this.#types[type])]),
    ) as StreamStatus["types"];
    const status: StreamStatus = {
      target: formatTarget(this.#target),
      plaintext: this.#security.kind === "plaintext",
      connected: this.#connectedSince !== undefined,
      connections: this.#connections,
      synced: this.#synced,
      version: this.#version,
      pushes: this.#pushes,
      types,
      rejected: TYPES.flatMap((type) =>
        [...this.#types[type].rejected].map(([resource, { reason, since }]) => ({
          type,
          resource,
          reason,
          since,
        })),
      ),
    };
    if (this.#connectedSince !== undefined) status.connectedSince = wallTime(this.#connectedSince);
    else if (this.#disconnectedSince !== undefined)
      status.disconnectedSince = wallTime(this.#disconnectedSince);
    if (this.#lastError) status.lastError = this.#lastError;
    if (this.#lastPush !== undefined) status.lastPush = wallTime(this.#lastPush);
    const { reported, notTaken } = this.#reports;
    if (reported) status.reported = reported;
    if (notTaken !== undefined) status.healthNotTaken = notTaken;
    if (this.#push.open) status.pendingSince = wallTime(this.#push.openedAt);
    return status;
  }

  // --- the connection's life ---

  #connect(): void {
    this.#on({ kind: "connecting", target: formatTarget(this.#target) });
    try {
      this.#connection = this.#open();
    } catch (error) {
      if (!(error instanceof FileError)) throw error;
      this.#ended((this.#security.kind === "tls" && this.#security.identity?.trouble()) || error.message);
      return;
    }
    const now = performance.now();
    this.#announce(this.#connection);
    this.#greet(now);
  }

  /** A new connection with the credentials of now. Throws FileError. */
  #open(): Connection {
    const open = openCredentials(this.#security, this.#target, this.#identity.clusterId);
    const connection: Connection = new Connection(
      this.#target,
      open,
      {
        message: (bytes) => {
          if (connection === this.#successor) this.#succeed(connection);
          this.#receive(bytes);
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
      this.#connectionTimes,
    );
    return connection;
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
    this.#announce(this.#successor);
  }

  /** istiod answers on the new connection: it is the connection from now on, and everything is asked for there. */
  #succeed(successor: Connection): void {
    this.#connection?.close();
    this.#connection = successor;
    this.#successor = undefined;
    this.#connectedSince = performance.now();
    this.#connections++;
    this.#on({ kind: "renewed", target: formatTarget(this.#target) });
    this.#greet(performance.now());
    this.#reports.connected(successor);
  }

  #retrySuccessor(reason: string): void {
    this.#dropSuccessor();
    const retry = Math.round(this.#successorBackoff.next());
    this.#on({ kind: "not-renewed", reason, retry });
    this.#successorTimer = setTimeout(() => this.#prepareSuccessor(), retry);
  }

  #dropSuccessor(): void {
    clearTimeout(this.#successorTimer);
    this.#successor?.close();
    this.#successor = undefined;
  }

  /** The first message of a connection: who we are, and that we want all clusters. */
  #announce(connection: Connection): void {
    connection.send(askAll("cluster", this.#node, this.#types.cluster.known()));
  }

  /** Asks for everything else, in the order in which it is applied. */
  #greet(now: number): void {
    this.#push.restart(now);
    for (const type of TYPES) {
      const subscription = this.#types[type];
      subscription.restart(now);
      if (isWildcard(type)) {
        const known = type === "names" ? new Map() : subscription.known();
        if (type !== "cluster") this.#send(askAll(type, undefined, known));
        subscription.watched = true;
      } else {
        this.#subscribe(subscription, [...subscription.asked]);
      }
    }
  }

  /** A connection with our certificate that ended unanswered, though istiod is there, may have ended for it. */
  #doubtCertificate(status: { code: number; details: string }, proof: Proof, answered: boolean): void {
    if (this.#security.kind !== "tls" || proof !== "certificate" || answered) return;
    if (
      status.code === UNAUTHENTICATED ||
      (status.code === UNAVAILABLE && !isAway(status) && !isDistrusted(status))
    )
      this.#security.identity?.doubt();
  }

  #explain(status: { code: number; details: string }, proof: Proof, answered: boolean): string {
    if (answered && (status.code === OK || status.code === UNAVAILABLE)) {
      return `istiod at ${formatTarget(this.#target)} closed the stream (${status.details})`;
    }
    // Without a certificate a refused token is the identity's trouble, and told once.
    const trouble = this.#security.kind === "tls" ? this.#security.identity?.trouble() : undefined;
    if (status.code === UNAUTHENTICATED && proof !== "certificate" && trouble !== undefined) return trouble;
    return explainRefusal(status, this.#target, this.#security, proof, this.#identity);
  }

  #ended(reason: string): void {
    const now = performance.now();
    const held = this.#connectedSince === undefined ? 0 : Math.max(1, now - this.#connectedSince);
    if (held > 0 || this.#disconnectedSince === undefined) this.#disconnectedSince = now;
    this.#dropSuccessor();
    this.#reports.disconnected();
    this.#connection?.close();
    this.#connection = undefined;
    this.#connectedSince = undefined;
    this.#lastError = { at: Date.now(), text: reason };
    if (held >= STEADY) this.#backoff.reset();
    const retry = Math.round(this.#backoff.next());
    this.#on({ kind: "disconnected", reason, held, retry });
    this.#settle();
    if (this.#running) this.#retryTimer = setTimeout(() => this.#connect(), retry);
  }

  #send(request: Uint8Array): void {
    this.#connection?.send(request);
  }

  #subscribe(subscription: Subscription, names: readonly string[]): void {
    // A first request without names would ask for everything.
    if (names.length === 0) return;
    subscription.watched = true;
    for (const request of subscribe(subscription.type, names)) this.#send(request);
  }

  // --- responses ---

  #receive(bytes: Uint8Array): void {
    const now = performance.now();
    if (this.#connectedSince === undefined) {
      this.#connectedSince = performance.now();
      this.#connections++;
      this.#on({ kind: "connected", target: formatTarget(this.#target) });
      if (this.#connection) this.#reports.connected(this.#connection);
    }
    let envelope: Envelope;
    try {
      envelope = readEnvelope(bytes);
    } catch (error) {
      // Nobody knows what it said: begin again, everything comes once more and what is unchanged costs nothing.
      this.#connection?.close();
      this.#ended(`istiod sent a response that can't be read (${reasonOf(error)})`);
      return;
    }
    const type = typeOfUrl(envelope.typeUrl);
    if (type === undefined || !this.#types[type].watched) {
      // Not answered at all: istiod can't deal with an answer about a type that it does not watch for us.
      this.#on({
        kind: "ignored",
        reason: `a response of type "${shorten(envelope.typeUrl)}", never asked for`,
      });
      return;
    }
    // Where one push ends and the next begins, what is complete goes live.
    const ripe = this.#push.open && envelope.version !== this.#push.version;
    if (ripe && this.#synced && this.#push.lacksUntil(this.#types, false) === 0) this.#commit();
    this.#apply(type, envelope, bytes, now);
    this.#settle();
  }

  #apply(type: ResourceType, envelope: Envelope, bytes: Uint8Array, now: number): void {
    const subscription = this.#types[type];
    const { counts } = subscription;
    counts.responses++;
    counts.bytes += bytes.length;
    this.#push.received(type, envelope.version, now);

    const complete = isWildcard(type) && subscription.answeredAt === 0 ? new Set<string>() : undefined;
    subscription.answeredAt = now;
    const before = counts.changed + counts.removed;
    const refused: Refusal[] = [];
    let nameless = false;
    eachResource(
      bytes,
      (resource) => {
        complete?.add(resource.name);
        const reason = this.#take(subscription, resource, now);
        if (reason === undefined) return;
        refused.push({ name: resource.name, reason });
        nameless ||= resource.name === "";
      },
      (index, reason) => {
        refused.push({ name: `resource ${index}`, reason });
        nameless = true;
      },
    );
    for (const name of envelope.removed) this.#drop(subscription, name, now);
    // One that can't be named might be any of those that seem to be missing.
    if (complete && !nameless) this.#dropAbsent(subscription, complete, now);

    counts.refused += refused.length;
    this.#send(acknowledge(type, envelope.nonce, refused));
    subscription.answer(envelope.version, refused.length === 0);
    if (counts.changed + counts.removed === before) return;
    if (type === "cluster") this.#follow("endpoints", now);
    if (type === "listener") this.#follow("route", now);
  }

  /** Hands one resource to the sink unless that holds it already. Gives the reason when it is malformed. */
  #take(subscription: Subscription, resource: RawResource, now: number): string | undefined {
    const { type, counts } = subscription;
    const { name, bytes } = resource;
    if (resource.typeUrl !== TYPE_URL[type]) return `is of type "${shorten(resource.typeUrl)}"`;
    if (name === "" && type !== "names") return "has no name";
    if (!isWildcard(type) && !subscription.asked.has(name)) return undefined;
    subscription.unanswered.delete(name);
    const hash = hash64(bytes);
    if (subscription.held.get(name) === hash) {
      subscription.rejected.delete(name);
      counts.unchanged++;
      return undefined;
    }
    const rejected = subscription.rejected.get(name);
    if (rejected?.hash === hash) return rejected.reason;
    try {
      this.#sink.upsert(type, name, bytes);
    } catch (error) {
      const reason = error instanceof MalformedResource ? error.reason : reasonOf(error);
      subscription.rejected.set(name, { hash, reason, since: Date.now() });
      this.#on({ kind: "rejected", type, resource: name, reason });
      return reason;
    }
    subscription.held.set(name, hash);
    subscription.rejected.delete(name);
    if (resource.version === "") subscription.versions.delete(name);
    else subscription.versions.set(name, resource.version);
    counts.changed++;
    this.#push.change(type, now);
    return undefined;
  }

  #drop(subscription: Subscription, name: string, now: number): void {
    if (!subscription.forget(name)) return;
    const { type } = subscription;
    subscription.counts.removed++;
    this.#push.change(type, now);
    try {
      this.#sink.remove(type, name);
    } catch (error) {
      this.#fail(`removing ${type} ${shorten(name)}`, error);
    }
    if (type !== "cluster") return;
    // Listeners or routes may still point to it: those of the same push come later.
    this.#push.expect("listener", now);
    if (this.#types.route.asked.size > 0) this.#push.expect("route", now);
  }

  /** What the first complete response of a stream lacks is gone, unless its version let istiod leave it out. */
  #dropAbsent(subscription: Subscription, present: ReadonlySet<string>, now: number): void {
    const known = new Set([...subscription.held.keys(), ...subscription.rejected.keys()]);
    for (const name of known) {
      if (!present.has(name) && !subscription.versions.has(name)) this.#drop(subscription, name, now);
    }
  }

  /** Brings the subscription of a type in line with what the sink wants. */
  #follow(type: "endpoints" | "route", now: number): void {
    const subscription = this.#types[type];
    const { asked, unanswered } = subscription;
    const wanted = this.#sink.wanted(type);
    const fresh = [...wanted].filter((name) => !asked.has(name));
    const stale = [...asked].filter((name) => !wanted.has(name));
    for (const name of stale) {
      asked.delete(name);
      this.#drop(subscription, name, now);
    }
    for (const name of fresh) {
      asked.add(name);
      unanswered.add(name);
    }
    if (fresh.length > 0) subscription.askedAt = now;
    if (asked.size === 0) this.#push.unexpect(type);
    this.#subscribe(subscription, fresh);
    for (const request of unsubscribe(type, stale)) this.#send(request);
  }

  // --- commits ---

  /** Commits the push when it is due, else looks again when it will be. */
  #settle(): void {
    clearTimeout(this.#commitTimer);
    if (this.#synced && !this.#push.open) return;
    if (!this.#connection) {
      // Half a push stays half until istiod is back.
      if (this.#synced && this.#push.lacksUntil(this.#types, false) === 0) this.#commit();
      return;
    }
    const wait = this.#push.dueAt(this.#types, !this.#synced) - performance.now();
    if (wait <= 0) this.#commit();
    else if (wait < Infinity) this.#commitTimer = setTimeout(() => this.#settle(), Math.ceil(wait));
  }

  #commit(): void {
    clearTimeout(this.#commitTimer);
    for (const type of ["endpoints", "route"] as const) {
      const { unanswered } = this.#types[type];
      if (unanswered.size === 0) continue;
      this.#on({ kind: "overdue", type, names: [...unanswered] });
      unanswered.clear();
    }
    const first = !this.#synced;
    const { version, openedAt } = this.#push;
    const took = this.#push.open ? performance.now() - openedAt : 0;
    this.#synced = true;
    this.#push.clear();
    this.#version = version;
    this.#pushes++;
    this.#lastPush = performance.now();
    try {
      this.#sink.commit({ version, first });
    } catch (error) {
      this.#fail(`push ${version}`, error);
      return;
    }
    this.#on({ kind: "committed", version, first, took });
  }

  #fail(what: string, error: unknown): void {
    const text = `${what}: ${reasonOf(error)}`;
    this.#lastError = { at: Date.now(), text };
    this.#on({ kind: "failed", reason: text });
  }
}

/** The moment that was at `at` by performance.now(), in milliseconds since the epoch by what the wall clock says now. */
function wallTime(at: number): number {
  return Math.round(Date.now() - (performance.now() - at));
}

/** Throws FileError. Whoever had a certificate before may be without a token now: that can mend itself. */
function requireFiles(security: Security, target: Target): void {
  const had = security.kind === "tls" && (security.identity?.roots() ?? "") !== "";
  openCredentials(had ? { kind: "tls", ca: security.ca } : security, target);
}

function typeStatus(subscription: Subscription): TypeStatus {
  return {
    resources: subscription.held.size,
    subscribed: subscription.asked.size,
    unanswered: subscription.unanswered.size,
    rejected: subscription.rejected.size,
    ...subscription.counts,
    ...(subscription.answered ? { answered: subscription.answered } : {}),
  };
}
