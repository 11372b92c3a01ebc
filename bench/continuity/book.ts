/**
 * Judges every connection: whether it was answered, by which endpoint, and whether both ends recorded the same. Also
 * compares the kernel's counters with the ledgers.
 */
import { constants } from "node:os";
import type { KernelCounts } from "./kernel-counts.ts";
import { FLAW, KIND, type MadeLedger, NOBODY, type TakenLedger } from "./records.ts";
import type { Instant, Validity } from "./validity.ts";

/** The errors of a connection that the kernel refuses: from 5.18 on those that an app would get without kmesh. */
const REFUSALS: readonly number[] = [
  constants.errno.ECONNREFUSED,
  constants.errno.EHOSTUNREACH,
  constants.errno.EPERM,
];
const ERROR_NAMES = new Map(Object.entries(constants.errno).map(([name, number]) => [number, name]));

/** What is known of the services and endpoints that the ledgers name by number. */
export interface Directory {
  services: readonly string[];
  endpoints: readonly { address: string; port: number }[];
  /** Whether connections to it are to be refused. */
  refuses(service: number): boolean;
  /** Whether connections to it are expected to find no listener. */
  fails(service: number): boolean;
}

export interface Sums {
  /** Short connections that were answered rightly. */
  made: number;
  /** Long connections that were opened. */
  opened: number;
  /** Connections that the kernel refused, as it should. */
  refused: number;
  /** Connections to an endpoint without a listener, as expected. */
  unanswered: number;
  /** To no service. */
  direct: number;
  /** Connections that failed, were cut, or brought other bytes or another peer's address than they should. */
  failed: number;
  /** Connections that another service's endpoint answered, or a removed one. */
  misrouted: number;
  /** Connections of which the two ends' ledgers tell different things. */
  ledgerErrors: number;
  /** Kernel counters that differ from the ledgers, each by its first appearance. */
  counterErrors: number;
}

/** Told of each connection that a service answered, and of each direct one. */
export type Watcher = (kind: "service" | "direct", began: Instant, connectTime: number) => void;

export class Book {
  readonly sums: Sums = {
    made: 0,
    opened: 0,
    refused: 0,
    unanswered: 0,
    direct: 0,
    failed: 0,
    misrouted: 0,
    ledgerErrors: 0,
    counterErrors: 0,
  };
  /** The first faults, as text. */
  readonly complaints: string[] = [];
  readonly #directory: Directory;
  readonly #validity: Validity;
  /** The expected kernel counters by service. */
  readonly #redirected: number[];
  readonly #refused: number[];
  readonly #failures: number[];
  /** By endpoint, long connections that are open. */
  readonly #open: number[];
  /** By counter, the difference that was reported last. */
  readonly #told = new Map<string, number>();

  constructor(directory: Directory, validity: Validity) {
    this.#directory = directory;
    this.#validity = validity;
    this.#redirected = directory.services.map(() => 0);
    this.#refused = directory.services.map(() => 0);
    this.#failures = directory.services.map(() => 0);
    this.#open = directory.endpoints.map(() => 0);
  }

  /** Long connections that are open. */
  get open(): number {
    return this.#open.reduce((sum, count) => sum + count, 0);
  }

  /** Reads the new ledger entries of both ends. No short connection may be in progress. */
  take(made: readonly MadeLedger[], taken: TakenLedger, watch: Watcher = () => {}): void {
    const servers = this.#takenBy(taken);
    for (const ledger of made) {
      for (let i = 0; i < ledger.length; i++) this.#judge(ledger, i, servers, watch);
    }
    for (const [key, endpoint] of servers) {
      this.#ledgerError(
        `${this.#endpoint(endpoint)} took connection ${key.toString(16)}, which no client made`,
      );
    }
  }

  /** Compares the ledgers with the kernel's counters. No short connection may be in progress. */
  compare(kernel: KernelCounts): void {
    this.#directory.services.forEach((name, service) => {
      const found = kernel.services.get(name) ?? { redirected: 0, refused: 0, failed: 0, other: 0 };
      this.counter(`${name}: redirected`, found.redirected, this.#redirected[service] ?? 0);
      this.counter(`${name}: refused`, found.refused, this.#refused[service] ?? 0);
      this.counter(`${name}: failed`, found.failed, this.#failures[service] ?? 0);
      this.counter(`${name}: passed`, found.other, 0);
    });
    const live = new Map(kernel.live);
    this.#directory.endpoints.forEach(({ address, port }, endpoint) => {
      const key = `${address} ${port}`;
      this.counter(`${key}: live`, live.get(key) ?? 0, this.#open[endpoint] ?? 0);
      live.delete(key);
    });
    for (const [key, count] of live) this.counter(`${key}: live`, count, 0);
    this.counter("live of all clusters", kernel.clusterLive, this.open);
    const all = (counts: readonly number[]) => counts.reduce((sum, count) => sum + count, 0);
    this.counter("traffic: opened", kernel.traffic.opened, all(this.#redirected));
    this.counter("traffic: ended", kernel.traffic.ended, all(this.#redirected) - this.open);
    this.counter("traffic: refused", kernel.traffic.refused, all(this.#refused));
  }

  complain(text: string): void {
    if (this.complaints.length < 50) this.complaints.push(text);
  }

  #takenBy(taken: TakenLedger): Map<number, number> {
    const servers = new Map<number, number>();
    for (let i = 0; i < taken.length; i++) {
      const key = keyOf(taken.maker(i), taken.serial(i));
      const endpoint = taken.endpoint(i);
      if (taken.flaws(i) !== 0) {
        this.#ledgerError(
          `${this.#endpoint(endpoint)} lost a connection: ${tell(taken.error(i), taken.flaws(i))}`,
        );
      } else if (servers.has(key)) {
        this.#ledgerError(`${this.#endpoint(endpoint)} took connection ${key.toString(16)} a second time`);
      } else servers.set(key, endpoint);
    }
    return servers;
  }

  #judge(ledger: MadeLedger, i: number, servers: Map<number, number>, watch: Watcher): void {
    const kind = ledger.kind(i);
    const error = ledger.error(i);
    const flaws = ledger.flaws(i);
    const service = ledger.service(i);
    const endpoint = ledger.endpoint(i);
    if (kind === KIND.closed) {
      this.#open[endpoint] = (this.#open[endpoint] ?? 0) - 1;
      if (error !== 0 || flaws !== 0) this.#failed(ledger, i, "a long connection was cut");
      return;
    }
    const key = keyOf(ledger.maker(i), ledger.serial(i));
    const server = servers.get(key);
    servers.delete(key);
    const direct = kind === KIND.direct;
    if (!direct) {
      const refused = (flaws & FLAW.atOnce) !== 0 && REFUSALS.includes(error);
      const counts = refused ? this.#refused : this.#redirected;
      counts[service] = (counts[service] ?? 0) + 1;
      if (refused && this.#directory.refuses(service)) {
        this.sums.refused++;
        return;
      }
      if (!refused && (flaws & FLAW.noConnect) !== 0) {
        this.#failures[service] = (this.#failures[service] ?? 0) + 1;
        if (this.#directory.fails(service) && error === constants.errno.ECONNREFUSED) {
          this.sums.unanswered++;
          return;
        }
      }
    }
    if (error !== 0 || flaws !== 0) {
      this.#failed(
        ledger,
        i,
        kind === KIND.opened ? "a long connection did not open" : "a connection failed",
      );
      return;
    }
    if (server !== endpoint) {
      this.#ledgerError(
        `a client was answered by ${this.#endpoint(endpoint)}, but ${this.#endpoint(server ?? NOBODY)} took it`,
      );
    }
    const began = ledger.began(i);
    const took = ledger.connectTime(i);
    watch(direct ? "direct" : "service", began, took);
    if (direct) {
      this.sums.direct++;
      return;
    }
    if (kind === KIND.opened) {
      this.sums.opened++;
      this.#open[endpoint] = (this.#open[endpoint] ?? 0) + 1;
    } else this.sums.made++;
    const fault = this.#validity.fault(service, endpoint, began, began + took);
    if (fault === undefined) return;
    this.sums.misrouted++;
    this.complain(
      `a connection to ${this.#directory.services[service]} met ${this.#endpoint(endpoint)}: ${fault}`,
    );
  }

  #failed(ledger: MadeLedger, i: number, what: string): void {
    this.sums.failed++;
    const to = this.#directory.services[ledger.service(i)] ?? "no service";
    const by = ledger.endpoint(i) === NOBODY ? "" : ` at ${this.#endpoint(ledger.endpoint(i))}`;
    this.complain(`${what}: to ${to}${by}: ${tell(ledger.error(i), ledger.flaws(i))}`);
  }

  #ledgerError(text: string): void {
    this.sums.ledgerErrors++;
    this.complain(text);
  }

  /** Compares one of the kernel's counters. A count that stays off by as much is one error. */
  counter(name: string, found: number, expected: number): void {
    const off = found - expected;
    if (off === (this.#told.get(name) ?? 0)) return;
    this.#told.set(name, off);
    this.sums.counterErrors++;
    this.complain(`the kernel counts ${name} ${found}, the ledgers ${expected}`);
  }

  #endpoint(index: number): string {
    const endpoint = this.#directory.endpoints[index];
    return endpoint ? `${endpoint.address} port ${endpoint.port}` : "nobody";
  }
}

function keyOf(maker: number, serial: number): number {
  return maker * 2 ** 40 + serial;
}

function tell(error: number, flaws: number): string {
  const words = [
    ...(error === 0 ? [] : [ERROR_NAMES.get(error) ?? `errno ${error}`]),
    ...(flaws & FLAW.atOnce ? ["refused at once"] : flaws & FLAW.noConnect ? ["not connected"] : []),
    ...(flaws & FLAW.noAnswer ? ["not answered"] : []),
    ...(flaws & FLAW.wrongBytes ? ["wrong bytes"] : []),
    ...(flaws & FLAW.wrongPeer ? ["getpeername shows another address"] : []),
  ];
  return words.join(", ");
}
