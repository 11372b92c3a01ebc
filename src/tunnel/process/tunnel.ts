/**
 * The process `kmesh tunnel`: carries the connections of apps to peers and of peers to apps. It needs only pinned tables and
 * the files of the identity, neither an agent nor istiod.
 */
import type { Socket } from "node:net";
import type { CertificateStore } from "../../istiod/identity/certificate-store.ts";
import { Counters, type Way } from "../counters.ts";
import { Budget } from "../http2/budget.ts";
import type { Admission } from "../inbound/admission.ts";
import type { Callers } from "../inbound/app.ts";
import { InboundTunnel } from "../inbound/inbound.ts";
import { Dialer } from "../outbound/dial.ts";
import { carryOutbound, type OutboundOptions } from "../outbound/outbound.ts";
import type { Endpoints, ReadTarget } from "../outbound/target.ts";
import { reset } from "../splice.ts";
import { MeshCredentials } from "../tls/mesh-credentials.ts";
import { Gate, LIMITS, type Limits } from "./gate.ts";
import { Listener, type ListenerName } from "./listeners.ts";
import { StatusFile, startTicks, sweepTunnels, type TunnelStatus } from "./status-file.ts";
import { Tidy } from "./tidy.ts";

/** Most bytes that the HTTP/2 streams of all connections hold for slow readers. */
const BUDGET = 64 * 1024 * 1024;
/** Interval of the periodic checks, milliseconds. */
const STATUS_EVERY = 1_000;
/** Most logged failures per second. All are counted. */
const LINES = 10;

export interface TunnelOptions {
  /** Listening addresses by name; an absent name is not served. */
  listeners: Partial<Record<ListenerName, { fd: number } | { host: string; port: number }>>;
  store: CertificateStore;
  readTarget: ReadTarget;
  /** Absent: nothing is tried on another endpoint, and no outcome is recorded. */
  endpoints?: Endpoints;
  admission: Admission;
  /** Absent: apps see this machine's own address instead of their callers'. */
  callers?: Callers;
  runDir: string;
  /** The pid of the process that this one is a worker of. */
  main?: number;
  version: string;
  baggage?: string;
  limits?: Limits;
  log: { info(text: string): void; warn(text: string): void };
}

export class Tunnel {
  readonly #options: TunnelOptions;
  readonly #counters = new Counters();
  readonly #credentials: MeshCredentials;
  readonly #budget = new Budget(BUDGET, (bytes) => {
    this.#counters.failed("hbone", "overload");
    this.#line(`hbone: overload: a stream whose reader does not read was reset (${bytes} bytes)`);
  });
  readonly #gates: Readonly<Record<Way, Gate>>;
  readonly #inbound: InboundTunnel;
  readonly #dialer: Dialer;
  readonly #file: StatusFile;
  readonly #started = Date.now();
  readonly #startTicks = startTicks(process.pid);
  #listeners: Listener[] = [];
  #timer: ReturnType<typeof setInterval> | undefined;
  #draining = false;
  #written = "";
  #lines = LINES;
  #suppressed = 0;
  readonly #tidy = new Tidy();
  readonly #ended = Promise.withResolvers<void>();

  private constructor(options: TunnelOptions) {
    const { store, log, limits, baggage, admission, callers, runDir } = options;
    this.#options = options;
    const gate = () => new Gate(limits ?? LIMITS, () => this.#finishWhenIdle());
    this.#gates = { outbound: gate(), inbound: gate(), hbone: gate() };
    this.#credentials = new MeshCredentials(store, (text) => log.info(text));
    const credentials = this.#credentials;
    const budget = this.#budget;
    const counters = this.#counters;
    this.#dialer = new Dialer({
      credentials,
      budget,
      handshake: () => {
        counters.rows.handshakes.client++;
      },
      warn: (text) => this.#line(text),
      ...(baggage !== undefined && { baggage }),
    });
    this.#inbound = new InboundTunnel({
      credentials,
      admission,
      ...(callers && { callers }),
      counters,
      budget,
      wasDisplaced: (raw) => Object.values(this.#gates).some((gate) => gate.hasDisplaced(raw)),
      log: (text) => this.#line(text),
    });
    this.#file = new StatusFile(runDir, process.pid);
  }

  /** Listens. Rejects with the system's error when a socket can't be opened; nothing listens then. */
  static async start(options: TunnelOptions): Promise<Tunnel> {
    const tunnel = new Tunnel(options);
    try {
      await tunnel.#listen();
    } catch (error) {
      tunnel.#close();
      throw error;
    }
    return tunnel;
  }

  /** Settles when a drained tunnel has ended its last connection. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Its listening sockets, for a hand-over. */
  get listeners(): readonly Listener[] {
    return this.#listeners;
  }

  /** Drains: accepts nothing, and `ended` settles with the last connection. HBONE peers get GOAWAY. */
  drain(): void {
    if (this.#draining) return;
    this.#draining = true;
    for (const listener of this.#listeners) listener.close();
    this.#inbound.drain();
    this.#dialer.drain();
    this.#writeStatus();
    this.#finishWhenIdle();
  }

  /** Resets the remaining connections. */
  abort(): void {
    this.drain();
    for (const gate of Object.values(this.#gates)) for (const socket of [...gate.sockets]) reset(socket);
  }

  status(): TunnelStatus {
    const listening = this.#draining
      ? []
      : this.#listeners.flatMap((listener) => {
          const at = listener.address;
          return at ? [{ name: listener.name, address: at.address, port: at.port }] : [];
        });
    return {
      pid: process.pid,
      ...(this.#options.main !== undefined && { main: this.#options.main }),
      startTicks: this.#startTicks,
      version: this.#options.version,
      started: this.#started,
      written: Date.now(),
      listening,
      draining: this.#draining,
      connections: this.#connections,
      held: this.#budget.used,
      certificate: this.#credentials.status(),
      ...this.#counters.rows,
    };
  }

  get #connections(): number {
    return Object.values(this.#gates).reduce((sum, gate) => sum + gate.connections, 0);
  }

  async #listen(): Promise<void> {
    const { readTarget, endpoints } = this.#options;
    const outbound: OutboundOptions = {
      readTarget,
      ...(endpoints && { endpoints }),
      dialer: this.#dialer,
      counters: this.#counters,
      log: (text) => this.#line(text),
    };
    const serve: Record<ListenerName, (socket: Socket, settled: () => void) => Promise<void>> = {
      outbound: (socket) => carryOutbound(socket, outbound),
      hbone: (socket, settled) => this.#inbound.serveHbone(socket, settled),
      inbound: (socket, settled) => this.#inbound.serveSteered(socket, settled, this.#portOf("inbound")),
      inbound6: (socket, settled) => this.#inbound.serveSteered(socket, settled, this.#portOf("inbound6")),
    };
    sweepTunnels(this.#options.runDir);
    for (const [name, where] of Object.entries(this.#options.listeners)) {
      const known = name as ListenerName;
      const accept = (socket: Socket) => this.#accept(known, socket, serve[known]);
      const listener = await this.#open(known, where, accept);
      if (listener) this.#listeners.push(listener);
    }
    this.#writeStatus();
    this.#timer = setInterval(() => this.#tick(), STATUS_EVERY);
  }

  /** Undefined without IPv6: `hbone` then listens on IPv4. */
  async #open(
    name: ListenerName,
    where: { fd: number } | { host: string; port: number },
    accept: (socket: Socket) => void,
  ): Promise<Listener | undefined> {
    try {
      return await Listener.open(name, where, accept);
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : "";
      const without6 = "host" in where && where.host.includes(":");
      if (!without6 || (code !== "EADDRNOTAVAIL" && code !== "EAFNOSUPPORT")) throw error;
      this.#options.log.info(`There is no IPv6 here: ${name} does without it`);
      return where.host === "::" ? Listener.open(name, { ...where, host: "0.0.0.0" }, accept) : undefined;
    }
  }

  #portOf(name: ListenerName): number {
    return this.#listeners.find((listener) => listener.name === name)?.address?.port ?? 0;
  }

  #accept(
    name: ListenerName,
    socket: Socket,
    serve: (socket: Socket, settled: () => void) => Promise<void>,
  ): void {
    const way = name === "inbound6" ? "inbound" : name;
    const gate = this.#gates[way];
    const surplus = gate.enter(socket);
    if (surplus) {
      this.#counters.failed(way, "overload");
      reset(surplus);
      if (surplus === socket) return;
    }
    const settled = () => gate.settled(socket);
    serve(socket, settled)
      .then(settled)
      .catch((error: unknown) => {
        this.#counters.failed(way, "other");
        this.#line(`${way}: ${String(error)}`);
        reset(socket);
      });
  }

  #finishWhenIdle(): void {
    if (!this.#draining || this.#connections > 0) return;
    this.#close();
    this.#ended.resolve();
  }

  #close(): void {
    clearInterval(this.#timer);
    for (const listener of this.#listeners) listener.close();
    this.#dialer.drain();
    this.#credentials.close();
    this.#file.remove();
  }

  #tick(): void {
    if (this.#suppressed > 0)
      this.#options.log.warn(`${this.#suppressed} more failures, counted by kmesh status`);
    this.#suppressed = 0;
    this.#lines = LINES;
    this.#inbound.review();
    this.#writeStatus();
    this.#tidy.look(this.#counters.version);
  }

  /** Writes the status if it changed. Ignores a full disk. */
  #writeStatus(): void {
    const status = this.status();
    const text = JSON.stringify({ ...status, written: 0 });
    if (text === this.#written) return;
    try {
      this.#file.write(status);
      this.#written = text;
    } catch {
      // The next check tries again.
    }
  }

  #line(text: string): void {
    if (this.#lines > 0) {
      this.#lines--;
      this.#options.log.warn(text);
    } else this.#suppressed++;
  }
}
