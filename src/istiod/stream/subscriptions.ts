/**
 * Subscriptions to istiod by type, and their responses. Passes changes to the sink, acknowledges responses, and
 * commits each complete push. A lost connection removes nothing from the sink.
 */
import { reasonOf } from "../../errors/reason.ts";
import { hash53 } from "../../runtime/hash.ts";
import { collectGarbage } from "../../runtime/heap.ts";
import type { nodeOf } from "../node.ts";
import { PUSH_TIMES, Push, type PushTimes } from "./push.ts";
import { acknowledge, askAll, type Refusal, shorten, subscribe, unsubscribe } from "./request.ts";
import { type Envelope, eachResource, type RawResource, readEnvelope } from "./response.ts";
import { MalformedResource, type ResourceSink, type ResourceType } from "./sink.ts";
import type { StreamEvent, StreamStatus, TypeStatus } from "./status.ts";
import { Subscription } from "./subscription.ts";
import { isWildcard, type Mode, REQUIRED, SUBSCRIBED, TYPE_URL, TYPES, typeOfUrl } from "./types.ts";

const NOTHING: ReadonlyMap<string, string> = new Map();
/** Bytes of a response before which garbage is collected. */
const LARGE = 8 << 20;

export interface SubscriptionsOptions {
  /** Default kernel-native. */
  mode?: Mode;
  node: ReturnType<typeof nodeOf>;
  sink: ResourceSink;
  times?: Partial<PushTimes>;
  on(event: StreamEvent): void;
  /** Sends on the connection in use. */
  send(request: Uint8Array): void;
  /** Whether there is a connection. Without one an incomplete push is not committed. */
  connected(): boolean;
}

/** The subscriptions of one node. They outlive connections; `begin` sends them again on a new one. */
export class Subscriptions {
  readonly #options: SubscriptionsOptions;
  readonly #push: Push;
  readonly #types: Readonly<Record<ResourceType, Subscription>> = {
    cluster: new Subscription("cluster"),
    endpoints: new Subscription("endpoints"),
    listener: new Subscription("listener"),
    route: new Subscription("route"),
    names: new Subscription("names"),
    authorization: new Subscription("authorization"),
    address: new Subscription("address"),
  };
  /** The types of the mode, in the order in which they are subscribed to. */
  readonly #subscribed: readonly ResourceType[];
  #commitTimer: ReturnType<typeof setTimeout> | undefined;
  #synced = false;
  #pushes = 0;
  #lastPush: number | undefined;
  #version = "";

  constructor(options: SubscriptionsOptions) {
    const { mode = "kernel-native", times } = options;
    this.#options = options;
    this.#subscribed = SUBSCRIBED[mode];
    this.#push = new Push({ ...PUSH_TIMES, ...times }, REQUIRED[mode]);
  }

  /** The times in it are by performance.now(). */
  status(): Pick<StreamStatus, "synced" | "version" | "pushes" | "types" | "rejected"> & {
    lastPush: number | undefined;
    pendingSince: number | undefined;
  } {
    return {
      synced: this.#synced,
      version: this.#version,
      pushes: this.#pushes,
      types: Object.fromEntries(
        TYPES.map((type) => [type, typeStatus(this.#types[type])]),
      ) as StreamStatus["types"],
      rejected: TYPES.flatMap((type) =>
        [...this.#types[type].rejected].map(([resource, { reason, since }]) => ({
          type,
          resource,
          reason,
          since,
        })),
      ),
      lastPush: this.#lastPush,
      pendingSince: this.#push.open ? this.#push.openedAt : undefined,
    };
  }

  /** Stops the timer. A pending push is not committed. */
  stop(): void {
    clearTimeout(this.#commitTimer);
  }

  /** The first message of a connection: the node, and the subscription to all of the mode's first type. */
  announcement(): Uint8Array {
    const [first = "cluster"] = this.#subscribed;
    return askAll(first, this.#options.node, this.#announced(this.#types[first]));
  }

  /** Subscribes to all other types on a new connection, after `announcement` has subscribed to the first. */
  begin(): void {
    const now = performance.now();
    this.#push.restart(now);
    for (const [i, type] of this.#subscribed.entries()) {
      const subscription = this.#types[type];
      subscription.restart(now);
      if (isWildcard(type)) {
        const known = this.#announced(subscription);
        if (i > 0) this.#options.send(askAll(type, undefined, known));
        subscription.watched = true;
        subscription.announced = known.size > 0;
      } else {
        this.#subscribe(subscription, [...subscription.asked]);
      }
    }
  }

  /** What a new stream tells istiod that kmesh holds. */
  #announced(subscription: Subscription): ReadonlyMap<string, string> {
    return subscription.type === "names" || !subscription.fits ? NOTHING : subscription.known();
  }

  /**
   * Processes one response. Gives the reason when its envelope can't be read, else undefined. The caller then
   * reconnects, since the content is unknown.
   */
  receive(bytes: Uint8Array): string | undefined {
    const now = performance.now();
    let envelope: Envelope;
    try {
      envelope = readEnvelope(bytes);
    } catch (error) {
      return `istiod sent a response that can't be read (${reasonOf(error)})`;
    }
    const type = typeOfUrl(envelope.typeUrl);
    if (type === undefined || !this.#types[type].watched) {
      // Neither ACK nor NACK: istiod can't handle an answer about a type that it does not watch for this node.
      this.#options.on({
        kind: "ignored",
        reason: `a response of type "${shorten(envelope.typeUrl)}", never asked for`,
      });
      return undefined;
    }
    // The first response of the next push: commit the previous one if it is complete.
    const ripe = this.#push.open && envelope.version !== this.#push.version;
    if (ripe && this.#synced && this.#push.lacksUntil(this.#types, false) === 0) this.#commit();
    // What the message was put together from is garbage now, and more than all else that is held.
    if (bytes.length > LARGE) collectGarbage();
    this.#apply(type, envelope, bytes, now);
    this.settle();
    return undefined;
  }

  #apply(type: ResourceType, envelope: Envelope, bytes: Uint8Array, now: number): void {
    const subscription = this.#types[type];
    const { counts } = subscription;
    counts.responses++;
    counts.bytes += bytes.length;
    this.#push.received(type, envelope.version, now);

    // The first complete response of a stream tells what is gone; where nothing is known, nothing is.
    const isKnown = subscription.held.size > 0 || subscription.rejected.size > 0;
    const complete =
      isWildcard(type) && subscription.answeredAt === 0 && isKnown ? new Set<string>() : undefined;
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
    // A resource without a readable name may be any of those that seem to be missing.
    if (complete && !nameless) this.#dropAbsent(subscription, complete, now);

    counts.refused += refused.length;
    this.#options.send(acknowledge(type, envelope.nonce, refused));
    subscription.answer(envelope.version, refused.length === 0);
    if (counts.changed + counts.removed === before) return;
    if (type === "address" && this.#options.sink.awaitsPolicies) this.#push.expect("authorization", now);
    // In dual-engine mode endpoints say which peers of the services have a sidecar.
    if (type === "cluster" || type === "address") this.#follow("endpoints", now);
    if (type === "listener") this.#follow("route", now);
  }

  /** Passes one resource to the sink unless the sink holds the same bytes. Gives the reason when it is malformed. */
  #take(subscription: Subscription, resource: RawResource, now: number): string | undefined {
    const { type, counts } = subscription;
    const { name, bytes } = resource;
    if (resource.typeUrl !== TYPE_URL[type]) return `is of type "${shorten(resource.typeUrl)}"`;
    if (name === "" && type !== "names") return "has no name";
    if (!isWildcard(type) && !subscription.asked.has(name)) return undefined;
    subscription.unanswered.delete(name);
    const hash = hash53(bytes);
    if (subscription.hashOf(name) === hash) {
      subscription.rejected.delete(name);
      counts.unchanged++;
      return undefined;
    }
    const rejected = subscription.rejected.get(name);
    if (rejected?.hash === hash) return rejected.reason;
    try {
      this.#options.sink.upsert(type, name, bytes);
    } catch (error) {
      const reason = error instanceof MalformedResource ? error.reason : reasonOf(error);
      subscription.rejected.set(name, { hash, reason, since: Date.now() });
      this.#options.on({ kind: "rejected", type, resource: name, reason });
      return reason;
    }
    subscription.hold(name, hash, resource.version);
    subscription.rejected.delete(name);
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
      this.#options.sink.remove(type, name);
    } catch (error) {
      this.#fail(`removing ${type} ${shorten(name)}`, error);
    }
    if (type !== "cluster") return;
    // Listeners or routes may still point to the removed cluster: istiod sends theirs later in the same push.
    this.#push.expect("listener", now);
    if (this.#types.route.asked.size > 0) this.#push.expect("route", now);
  }

  /**
   * Removes the resources that the first complete response of a stream lacks, except those with a version that the stream
   * began with: istiod may omit them as unchanged.
   */
  #dropAbsent(subscription: Subscription, present: ReadonlySet<string>, now: number): void {
    const known = new Set([...subscription.held.keys(), ...subscription.rejected.keys()]);
    for (const name of known) {
      const omitted = subscription.announced && subscription.hasVersion(name);
      if (!present.has(name) && !omitted) this.#drop(subscription, name, now);
    }
  }

  /** Subscribes and unsubscribes until the type's names are those that the sink wants. */
  #follow(type: "endpoints" | "route", now: number): void {
    const subscription = this.#types[type];
    const { asked, unanswered } = subscription;
    const wanted = this.#options.sink.wanted(type);
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
    for (const request of unsubscribe(type, stale)) this.#options.send(request);
  }

  #subscribe(subscription: Subscription, names: readonly string[]): void {
    // A first request without names would subscribe to everything.
    if (names.length === 0) return;
    subscription.watched = true;
    for (const request of subscribe(subscription.type, names)) this.#options.send(request);
  }

  /** Commits the push when it is due, else sets a timer for that time. */
  settle(): void {
    clearTimeout(this.#commitTimer);
    if (this.#synced && !this.#push.open) return;
    if (!this.#options.connected()) {
      // An incomplete push waits until istiod is back.
      if (this.#synced && this.#push.lacksUntil(this.#types, false) === 0) this.#commit();
      return;
    }
    const wait = this.#push.dueAt(this.#types, !this.#synced) - performance.now();
    if (wait <= 0) this.#commit();
    else if (wait < Infinity) this.#commitTimer = setTimeout(() => this.settle(), Math.ceil(wait));
  }

  #commit(): void {
    clearTimeout(this.#commitTimer);
    for (const type of ["endpoints", "route"] as const) {
      const { unanswered } = this.#types[type];
      if (unanswered.size === 0) continue;
      this.#options.on({ kind: "overdue", type, names: [...unanswered] });
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
      this.#options.sink.commit({ version, first });
    } catch (error) {
      this.#fail(`push ${version}`, error);
      return;
    }
    this.#options.on({ kind: "committed", version, first, took });
  }

  #fail(what: string, error: unknown): void {
    this.#options.on({ kind: "failed", reason: `${what}: ${reasonOf(error)}` });
  }
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
