/** The tunnel's use of pinned tables, with or without an agent: targets, policies, its own exemption, and steering. */
import { existsSync, statSync } from "node:fs";
import {
  callerKey,
  endCarried,
  isCounted,
  putCaller,
  putCarried,
  sweepCallers,
  sweepCarried,
} from "../../datapath/callers.ts";
import { exemptSelfPinned } from "../../datapath/generation/exempt-pinned.ts";
import { type CallerMaps, TunnelTargetReader } from "../../datapath/tunnel-reader.ts";
import { reasonOf } from "../../errors/reason.ts";
import { monotonic } from "../../kernel/clock.ts";
import { type TaskIdentity, taskIdentity } from "../../kernel/process.ts";
import { mtlsOf } from "../../mesh/inbound.ts";
import type { Judge } from "../../policy/decide.ts";
import { keptInboundPin, offerListeners, openPolicySet, type PolicySet } from "../../policy/pinned.ts";
import { RefusalCounter } from "../../policy/refusal-counter.ts";
import { type Admission, type InboundConnection, NOBODY } from "../inbound/admission.ts";
import type { AddressAndPort, Caller, Callers } from "../inbound/app.ts";
import type { Endpoints, TunnelTarget } from "../outbound/target.ts";
import type { Listener } from "./listeners.ts";

/** Pause between attempts to read missing policies, milliseconds. */
const RETRY_EVERY = 1_000;
/** Milliseconds between two looks at the pin, one stat(2): `kmesh down` and a start make other tables. */
const LOOK_EVERY = 1_000;
/** Milliseconds between two renewals while the pin stays the same. */
const RENEW_EVERY = 10_000;
/** Milliseconds between two removals of callers whose connections ended long ago. */
const SWEEP_EVERY = 60_000;

/** Identifies the pinned map of listeners; undefined while there is none. */
function pinOf(bpffs: string): number | undefined {
  return statSync(keptInboundPin(bpffs, "inbound_listeners"), { throwIfNoEntry: false })?.ino;
}

export class PinnedMesh implements Admission, Callers, Endpoints {
  readonly #bpffs: string;
  readonly #warn: (text: string) => void;
  readonly #targets: TunnelTargetReader;
  readonly #refusals: RefusalCounter;
  #policies: PolicySet | undefined;
  #policiesTriedAt = Number.NEGATIVE_INFINITY;
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #self = taskIdentity();
  #trouble = "";

  /** Opens nothing yet. Call `close` at the end. */
  constructor(bpffs: string, warn: (text: string) => void) {
    this.#bpffs = bpffs;
    this.#warn = warn;
    this.#refusals = new RefusalCounter(bpffs);
    // Other tables: exempt from those, too, or connections to peers would be led to the tunnel again.
    this.#targets = new TunnelTargetReader(bpffs, () => this.#exempt());
  }

  readTarget(number: number): TunnelTarget | undefined {
    try {
      return this.#targets.read(number);
    } catch (error) {
      this.#complain(`the tunnel targets can't be read: ${reasonOf(error)}`);
      return undefined;
    }
  }

  another(target: TunnelTarget): TunnelTarget | undefined {
    try {
      return this.#targets.another(target.number);
    } catch (error) {
      this.#complain(`the endpoints can't be read: ${reasonOf(error)}`);
      return undefined;
    }
  }

  record(target: TunnelTarget, went: "well" | "wrong", since: bigint): void {
    try {
      this.#targets.record(target.number, went, since);
    } catch (error) {
      this.#complain(`how endpoints are can't be recorded: ${reasonOf(error)}`);
    }
  }

  now(): bigint {
    return monotonic();
  }

  show(app: AddressAndPort, port: number, caller: Caller): ((wasConnected: boolean) => void) | undefined {
    try {
      const maps = this.#targets.callers();
      if (!maps || !this.#self) return undefined;
      const key = callerKey({ address: app.address, port }, app.port);
      putCaller(maps.callers, key, caller, this.#self);
      const carried = this.#countFor(maps.counted, key, app.port, caller);
      return (wasConnected) =>
        this.#try("a caller that has gone can't be removed", () =>
          this.#removeCaller(key, carried, wasConnected),
        );
    } catch (error) {
      this.#complain(`apps can't be shown their callers: ${reasonOf(error)}`);
      return undefined;
    }
  }

  /** Gives the entry; undefined: the traffic is not counted, or as from this machine's own address. */
  #countFor(
    counted: CallerMaps["counted"],
    key: Uint8Array,
    port: number,
    caller: Caller,
  ): Uint8Array | undefined {
    try {
      // An entry is removed when its connection is counted.
      if (!counted || !this.#self || !isCounted(counted.served, port)) return undefined;
      return putCarried(counted, key, caller, this.#self);
    } catch (error) {
      this.#complain(`traffic can't be counted for its caller: ${reasonOf(error)}`);
      return undefined;
    }
  }

  #removeCaller(key: Uint8Array, carried: Uint8Array | undefined, wasConnected: boolean): boolean {
    const maps = this.#targets.callers();
    if (carried && maps?.counted) {
      if (wasConnected) endCarried(maps.counted.carried, key, carried);
      else maps.counted.carried.delete(key);
    }
    return maps?.callers.delete(key) ?? false;
  }

  /** Removes the callers of tunnels that have crashed: their connections are gone, and others may come from those ports. */
  #sweepCallers(): boolean {
    return this.#try("callers of a tunnel that has crashed can't be removed", () => {
      const maps = this.#targets.callers();
      if (maps) sweepCallers(maps.callers, lives);
      return maps !== undefined;
    });
  }

  /** Also what the app's end of a connection has outlived for long. */
  #sweepCarried(): boolean {
    return this.#try("callers that have gone can't be forgotten", () => {
      const counted = this.#targets.callers()?.counted;
      if (counted && this.#self) sweepCarried(counted.carried, this.#self, lives);
      return true;
    });
  }

  /** Tells the kernel which sockets are the tunnel's: the app's end of a connection is the one that is counted. */
  #mark(fds: readonly (number | undefined)[]): boolean {
    return this.#try("it can't mark its listeners", () => {
      const sockets = this.#targets.callers()?.counted?.sockets;
      for (const fd of fds)
        if (sockets && fd !== undefined)
          sockets.update(
            new Uint8Array(Int32Array.of(fd).buffer),
            new Uint8Array(BigUint64Array.of(1n).buffer),
          );
      return true;
    });
  }

  decide(connection: InboundConnection): { allowed: boolean; reason: string; policy?: string } {
    try {
      const decision = this.#judge()?.decide(connection) ?? NOBODY.decide(connection);
      if (!decision.allowed) this.#count(decision.policy);
      return decision;
    } catch (error) {
      this.#complain(`the policies can't be read: ${reasonOf(error)}`);
      return NOBODY.decide(connection);
    }
  }

  mtls(port: number) {
    try {
      const judge = this.#judge();
      if (!judge) return NOBODY.mtls(port);
      return judge.governs(port) ? mtlsOf(judge.inbound, port) : undefined;
    } catch {
      return NOBODY.mtls(port);
    }
  }

  trustDomains(): readonly string[] {
    try {
      return this.#judge()?.inbound.trustDomains ?? [];
    } catch {
      return [];
    }
  }

  establishedRevision(): number | undefined {
    try {
      this.#judge();
      return this.#policies?.read()?.enforcesEstablished ? this.#policies.id : undefined;
    } catch (error) {
      this.#complain(`the policies can't be read: ${reasonOf(error)}`);
      return undefined;
    }
  }

  /**
   * From now on this process is not governed by the tables, and connections that need mutual TLS are steered to its
   * listeners `inbound` and `inbound6`; also when the tables come later.
   */
  serve(listeners: readonly Listener[]): void {
    const fd = (name: string) => listeners.find((listener) => listener.name === name)?.fd;
    let pinned: number | undefined;
    let renewed = Number.NEGATIVE_INFINITY;
    let swept = Number.NEGATIVE_INFINITY;
    const look = () => {
      const now = performance.now();
      const pin = pinOf(this.#bpffs);
      if (pin === undefined || pin !== pinned || now - renewed >= RENEW_EVERY) {
        const exempt = this.#exempt();
        if (pin !== pinned) this.#sweepCallers();
        if (pin !== pinned || now - swept >= SWEEP_EVERY) {
          this.#sweepCarried();
          swept = now;
        }
        this.#mark([fd("inbound"), fd("inbound6")]);
        const offered = this.#try("it can't offer its listeners", () =>
          offerListeners(this.#bpffs, fd("inbound"), fd("inbound6")),
        );
        pinned = exempt && offered ? pin : undefined;
        renewed = now;
      }
      this.#timer = setTimeout(look, LOOK_EVERY);
      this.#timer.unref();
    };
    look();
  }

  /** Withdraws the listeners, because another process offers the same sockets, or none does. */
  leave(): void {
    clearTimeout(this.#timer);
  }

  close(): void {
    this.leave();
    this.#targets.close();
    this.#policies?.close();
    this.#policies = undefined;
    this.#refusals.close();
  }

  #exempt(): boolean {
    return this.#try("it can't exempt itself", () => {
      // No tables yet: an agent must create them.
      if (!existsSync(this.#bpffs)) return false;
      exemptSelfPinned(this.#bpffs);
      return true;
    });
  }

  /** Where the kernel counts its own refusals. */
  #count(policy: string | undefined): void {
    const number = policy === undefined ? undefined : this.#policies?.read()?.numbers.get(policy);
    if (number === undefined) return;
    this.#try("it can't count a refusal", () => {
      this.#refusals.add(number);
      return true;
    });
  }

  #judge(): Judge | undefined {
    if (!this.#policies) {
      const now = performance.now();
      if (now - this.#policiesTriedAt < RETRY_EVERY) return undefined;
      this.#policiesTriedAt = now;
      this.#policies = openPolicySet(this.#bpffs);
    }
    return this.#policies?.current();
  }

  #try(what: string, act: () => boolean): boolean {
    try {
      return act();
    } catch (error) {
      this.#complain(`${what}: ${reasonOf(error)}`);
      return false;
    }
  }

  /** Logs an error once, until another one occurs. */
  #complain(text: string): void {
    if (text !== this.#trouble) this.#warn(text);
    this.#trouble = text;
  }
}

function lives({ tgid, startTicks }: TaskIdentity): boolean {
  return taskIdentity(tgid)?.startTicks === startTicks;
}
