/**
 * Judges every connection: whether it was answered, by which endpoint, and whether both ends recorded the same. Also
 * compares the kernel's counters with the ledgers.
 */
import { constants } from "node:os";
import type { Accepted, KernelCounts } from "./kernel-counts.ts";
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
  endpoints: readonly { address: string; port: number; service: number }[];
  /** Whether connections to it are to be refused. */
  refuses(service: number): boolean;
  /** Whether connections to it are expected to find no listener. */
  fails(service: number): boolean;
  /** Whether connections to it go through the tunnel. */
  tunnelled(service: number): boolean;
  /** Whether the tunnel is to reset them, since the peer is somebody else. */
  impostor(service: number): boolean;
}

/** What a tunnel may cut: its own connections, when it is killed. */
export interface Crash {
  /** SIGKILL was sent, and the process is gone. */
  from: Instant;
  to: Instant;
  /** Connections that it carried, at most. */
  most: number;
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
  /** Of those made and opened: through the tunnel. */
  tunnelled: number;
  /** Connections of a tunnel that was killed, which ended with it. */
  cut: number;
  /** Reset by the tunnel since the peer was somebody else, as they should be. */
  impostors: number;
  /** Answered by a peer that is somebody else. */
  wrongIdentity: number;
  /** Connections that failed, were cut, or brought other bytes or another peer's address than they should. */
  failed: number;
  /** Connections that another service's endpoint answered, or a removed one. */
  misrouted: number;
  /** Connections of which the two ends' ledgers tell different things. */
  ledgerErrors: number;
  /** Kernel counters that differ from the ledgers, each by its first appearance. */
  counterErrors: number;
}

/**
 * Called for each connection that a service answered, and for each direct one, with the time of its connect(); through the
 * tunnel with the time to the answer, ns.
 */
export type Watcher = (kind: "service" | "tunnel" | "direct", began: Instant, time: number) => void;

/** Complaints that are kept: of one kind, and in all. */
const MOST_OF_A_KIND = 12;
const MOST_COMPLAINTS = 60;

const ACCEPTED_COUNTS = ["opened", "closed", "received", "sent", "retransmits"] as const;
const NOTHING_ACCEPTED: Accepted = {
  port: 0,
  remote: "",
  opened: 0,
  closed: 0,
  received: 0,
  sent: 0,
  retransmits: 0,
};

/** A client must see at once that its tunnel was killed, ns; where the processor is busy, once the other tunnel gets its turn. */
const AT_ONCE = 5e9;

export class Book {
  readonly sums: Sums = {
    made: 0,
    opened: 0,
    refused: 0,
    unanswered: 0,
    direct: 0,
    tunnelled: 0,
    cut: 0,
    impostors: 0,
    wrongIdentity: 0,
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
  #answeredByReset = 0;
  /** Payload bytes of connections to services that are over. */
  #sent = 0;
  #received = 0;
  /** By endpoint, long connections that are open. */
  readonly #open: number[];
  readonly #crashes: (Crash & { cut: number })[] = [];
  /** A tunnel was killed since the last comparison. */
  #justCrashed = false;
  /** Connections that were cut by a crash since the last look: the servers lost them, too. */
  readonly #cut = new Set<number>();
  /** By counter, the difference that was reported last. */
  readonly #told = new Map<string, number>();
  /** How many complaints begin with the same words. */
  readonly #kinds = new Map<string, number>();

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

  /** A tunnel was killed: its own connections end with it. */
  crashed(crash: Crash): void {
    this.#crashes.push({ ...crash, cut: 0 });
    this.#justCrashed = true;
  }

  /** Reads the new ledger entries of both ends. No short connection may be in progress. */
  take(made: readonly MadeLedger[], taken: readonly TakenLedger[], watch: Watcher = () => {}): void {
    const servers = new Map<number, number>();
    const lost = new Map<number, string>();
    for (const ledger of taken) this.#readTaken(ledger, servers, lost);
    for (const ledger of made) {
      for (let i = 0; i < ledger.length; i++) this.#judge(ledger, i, servers, watch);
    }
    for (const [key, text] of lost) if (!this.#cut.has(key)) this.#ledgerError(text);
    this.#cut.clear();
    for (const [key, endpoint] of servers) {
      this.#ledgerError(
        `${this.#endpoint(endpoint)} took connection ${key.toString(16)}, which no client made`,
      );
    }
  }

  /** Compares the ledgers with the kernel's counters. No short connection may be in progress. */
  compare(kernel: Omit<KernelCounts, "accepted">): void {
    this.#directory.services.forEach((name, service) => {
      const found = kernel.services.get(name) ?? { redirected: 0, refused: 0, failed: 0, other: 0 };
      this.counter(`${name}: redirected`, found.redirected, this.#redirected[service] ?? 0);
      this.counter(`${name}: refused`, found.refused, this.#refused[service] ?? 0);
      // With a tunnel that was killed went what it had not recorded yet; one whose peer was killed tries another.
      if (this.#justCrashed && this.#directory.tunnelled(service)) this.#failures[service] = found.failed;
      else this.counter(`${name}: failed`, found.failed, this.#failures[service] ?? 0);
      this.counter(`${name}: passed`, found.other, 0);
    });
    this.#justCrashed = false;
    const live = new Map(kernel.live);
    const byService = new Map<number, { found: number; expected: number }>();
    this.#directory.endpoints.forEach(({ address, port, service }, endpoint) => {
      const key = `${address} ${port}`;
      const [found, expected] = [live.get(key) ?? 0, this.#open[endpoint] ?? 0];
      live.delete(key);
      // When a peer's tunnel was killed, ours tried another endpoint than the kernel had chosen.
      if (this.#crashes.length > 0 && this.#directory.tunnelled(service)) {
        const sum = byService.get(service) ?? { found: 0, expected: 0 };
        byService.set(service, { found: sum.found + found, expected: sum.expected + expected });
      } else this.counter(`${key}: live`, found, expected);
    });
    for (const [service, { found, expected }] of byService)
      this.counter(`${this.#directory.services[service]}: live`, found, expected);
    for (const [key, count] of live) this.counter(`${key}: live`, count, 0);
    this.counter("live of all clusters", kernel.clusterLive, this.open);
    if (!kernel.isFlushed && this.open > 0) return;
    const all = (counts: readonly number[]) => counts.reduce((sum, count) => sum + count, 0);
    this.counter("traffic: opened", kernel.traffic.opened, all(this.#redirected));
    this.counter("traffic: ended", kernel.traffic.ended, all(this.#redirected) - this.open);
    this.counter("traffic: refused", kernel.traffic.refused, all(this.#refused));
    this.counter(
      "traffic: connects that a reset answered",
      kernel.traffic.connectRefused,
      this.#answeredByReset,
    );
    this.counter("traffic: connects that nothing answered", kernel.traffic.neverConnected, 0);
    // What long ones have passed so far is known when they are closed.
    if (this.open > 0) return;
    this.counter("traffic: bytes sent", kernel.traffic.sent, this.#sent);
    this.counter("traffic: bytes received", kernel.traffic.received, this.#received);
  }

  /**
   * Compares what the kernel counted of connections that this machine accepted with what its app counted. Both are sums from
   * the beginning on; of connections that are open the kernel may know less bytes.
   */
  compareAccepted(
    { accepted: kernel, isFlushed }: Pick<KernelCounts, "accepted" | "isFlushed">,
    app: readonly Accepted[],
  ): void {
    const names = (each: Accepted) =>
      `accepted on port ${each.port} from ${each.remote || "rows that are gone"}`;
    const open = app.some(({ opened, closed }) => opened !== closed);
    if (!isFlushed && open) return;
    // What a retired row had is nobody's by name: then the whole is compared.
    const byName = kernel.every(({ remote }) => remote !== "");
    const sums = (all: readonly Accepted[]) => {
      const found = new Map<string, Accepted>();
      for (const each of all) {
        const name = byName ? names(each) : "accepted";
        const sum = found.get(name) ?? NOTHING_ACCEPTED;
        found.set(name, {
          port: each.port,
          remote: each.remote,
          opened: sum.opened + each.opened,
          closed: sum.closed + each.closed,
          received: sum.received + each.received,
          sent: sum.sent + each.sent,
          retransmits: sum.retransmits + each.retransmits,
        });
      }
      return found;
    };
    const [found, expected] = [sums(kernel), sums(app)];
    for (const name of new Set([...found.keys(), ...expected.keys()])) {
      const [is, should] = [found.get(name) ?? NOTHING_ACCEPTED, expected.get(name) ?? NOTHING_ACCEPTED];
      for (const what of open ? (["opened", "closed"] as const) : ACCEPTED_COUNTS)
        this.counter(`${name}: ${what}`, is[what], should[what]);
    }
  }

  complain(text: string): void {
    const [kind = ""] = text.split(/:| \d/);
    const count = (this.#kinds.get(kind) ?? 0) + 1;
    this.#kinds.set(kind, count);
    if (count <= MOST_OF_A_KIND && this.complaints.length < MOST_COMPLAINTS) this.complaints.push(text);
  }

  /** Puts into `servers` who took which connection, and into `lost` those that a server lost. */
  #readTaken(taken: TakenLedger, servers: Map<number, number>, lost: Map<number, string>): void {
    for (let i = 0; i < taken.length; i++) {
      const key = keyOf(taken.maker(i), taken.serial(i));
      const endpoint = taken.endpoint(i);
      if (taken.flaws(i) !== 0) {
        lost.set(
          key,
          `${this.#endpoint(endpoint)} lost a connection: ${tell(taken.error(i), taken.flaws(i))}`,
        );
      } else if (servers.has(key)) {
        this.#ledgerError(`${this.#endpoint(endpoint)} took connection ${key.toString(16)} a second time`);
      } else servers.set(key, endpoint);
    }
  }

  #judge(ledger: MadeLedger, i: number, servers: Map<number, number>, watch: Watcher): void {
    const kind = ledger.kind(i);
    const error = ledger.error(i);
    const flaws = ledger.flaws(i);
    const service = ledger.service(i);
    const endpoint = ledger.endpoint(i);
    const isOver = kind !== KIND.opened || error !== 0 || flaws !== 0;
    if (isOver && kind !== KIND.direct) {
      this.#sent += ledger.sent(i);
      this.#received += ledger.received(i);
    }
    if (kind === KIND.closed) {
      this.#open[endpoint] = (this.#open[endpoint] ?? 0) - 1;
      if ((error !== 0 || flaws !== 0) && !this.#cutByCrash(ledger, i))
        this.#failed(ledger, i, "a long connection was cut");
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
      // A reset answers a SYN with ECONNREFUSED. ECONNRESET comes to a connection that the client had not yet seen made.
      if (!refused && (flaws & FLAW.noConnect) !== 0 && error !== constants.errno.ECONNRESET) {
        this.#failures[service] = (this.#failures[service] ?? 0) + 1;
        if (error === constants.errno.ECONNREFUSED) this.#answeredByReset++;
        if (this.#directory.fails(service) && error === constants.errno.ECONNREFUSED) {
          this.sums.unanswered++;
          return;
        }
      }
    }
    const impostor = !direct && this.#directory.impostor(service);
    if (impostor && error === constants.errno.ECONNRESET && (flaws & FLAW.wrongBytes) === 0) {
      this.sums.impostors++;
      // The tunnel records failures behind it as failed connects.
      this.#failures[service] = (this.#failures[service] ?? 0) + 1;
      return;
    }
    if (error !== 0 || flaws !== 0) {
      if (this.#cutByCrash(ledger, i)) return;
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
    const tunnelled = !direct && this.#directory.tunnelled(service);
    if (tunnelled) {
      this.sums.tunnelled++;
      if (kind === KIND.short) watch("tunnel", began, ledger.totalTime(i) * 1000);
    } else watch(direct ? "direct" : "service", began, took);
    if (direct) {
      this.sums.direct++;
      return;
    }
    if (kind === KIND.opened) {
      this.sums.opened++;
      this.#open[endpoint] = (this.#open[endpoint] ?? 0) + 1;
    } else this.sums.made++;
    if (impostor) {
      this.sums.wrongIdentity++;
      this.complain(`a connection to ${this.#directory.services[service]} was answered by somebody else`);
    }
    const fault = this.#validity.fault(service, endpoint, began, began + took);
    if (fault === undefined) return;
    this.sums.misrouted++;
    this.complain(
      `a connection to ${this.#directory.services[service]} met ${this.#endpoint(endpoint)}: ${fault}`,
    );
  }

  /** Whether the connection ended, too early, with the tunnel that carried it. */
  #cutByCrash(ledger: MadeLedger, i: number): boolean {
    const service = ledger.service(i);
    if (service === NOBODY || !this.#directory.tunnelled(service)) return false;
    if ((ledger.flaws(i) & (FLAW.wrongBytes | FLAW.wrongPeer | FLAW.atOnce)) !== 0) return false;
    const began = ledger.began(i);
    const ended = began + ledger.totalTime(i) * 1000;
    // The last one: what connects while a tunnel dies is the next one's, and may end with that, soon after.
    const crash = this.#crashes.findLast(
      ({ from, to, most, cut }) => began <= to && from <= ended && ended <= to + AT_ONCE && cut < most,
    );
    if (!crash) return false;
    crash.cut++;
    this.sums.cut++;
    this.#cut.add(keyOf(ledger.maker(i), ledger.serial(i)));
    return true;
  }

  #failed(ledger: MadeLedger, i: number, what: string): void {
    this.sums.failed++;
    const to = this.#directory.services[ledger.service(i)] ?? "no service";
    const by = ledger.endpoint(i) === NOBODY ? "" : ` at ${this.#endpoint(ledger.endpoint(i))}`;
    const when = this.#when(ledger.began(i), ledger.began(i) + ledger.totalTime(i) * 1000);
    this.complain(`${what}: to ${to}${by}: ${tell(ledger.error(i), ledger.flaws(i))}${when}`);
  }

  /** When a connection began and ended, from the last crash on. */
  #when(began: Instant, ended: Instant): string {
    const crash = this.#crashes.at(-1);
    if (!crash) return "";
    const [from, to] = [began, ended].map((at) => ((at - crash.from) / 1e6).toFixed(1));
    const took = ((crash.to - crash.from) / 1e6).toFixed(1);
    return ` (from ${from} to ${to} ms after the last crash, which took ${took} ms and might cut ${crash.most})`;
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
