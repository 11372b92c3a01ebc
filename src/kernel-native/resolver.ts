/**
 * Resolves the names of DNS clusters. It asks the machine's name servers, never the mesh's own name table: a
 * cluster's target often has the name of its service. A name keeps its last good answer.
 */

import dns from "node:dns";
import { codeOf } from "../errors/reason.ts";
import { canonicalAddress } from "../mesh/address.ts";

export type Family = 4 | 6;

export interface Answer {
  addresses: string[];
  /** Seconds. */
  ttl: number;
}

/**
 * Looks up the addresses of one family. Resolves with an empty answer when the name does not exist or has no such
 * address. Rejects when no server answered.
 */
export type Lookup = (host: string, family: Family) => Promise<Answer>;

/** A name that a DNS cluster needs. */
export interface Question {
  host: string;
  family: Family;
  /** Seconds between lookups. */
  refresh: number;
  /** Whether the answer's TTL is used instead of `refresh`. */
  respectTtl: boolean;
}

/** The last result of a question. */
export interface Known {
  /** Canonical, sorted; undefined before the first answer. */
  addresses: readonly string[] | undefined;
  /** Whether the first lookup has ended, with or without an answer. */
  tried: boolean;
}

interface Entry extends Question {
  addresses: readonly string[] | undefined;
  tried: boolean;
  failures: number;
  timer: ReturnType<typeof setTimeout> | undefined;
}

/** The shortest and the longest time between lookups of a name, whatever its TTL, seconds. */
const SHORTEST = 1;
const LONGEST = 3600;
/** Pause after a failed lookup, seconds: doubles from the first to the longest. */
const RETRY_FIRST = 1;
const RETRY_LONGEST = 30;
/** Concurrent lookups. More would overload a small name server. */
const AT_ONCE = 32;
const UNKNOWN: Known = { addresses: undefined, tried: false };

export class Resolver {
  readonly #lookup: Lookup;
  readonly #changed: (hosts: ReadonlySet<string>) => void;
  readonly #entries = new Map<string, Entry>();
  /** Lookups that wait for their turn. */
  readonly #queue: [string, Entry][] = [];
  #running = 0;
  #announced = new Set<string>();
  #closed = false;

  /** `changed` is called with the hosts whose addresses changed, once per turn of the event loop. */
  constructor(options: { lookup?: Lookup; changed(hosts: ReadonlySet<string>): void }) {
    this.#lookup = options.lookup ?? systemLookup();
    this.#changed = options.changed;
  }

  /** The last result; starts no lookup. */
  known(host: string, family: Family): Known {
    return this.#entries.get(key(host, family)) ?? UNKNOWN;
  }

  /** Keeps exactly these questions answered. Of two equal questions the shorter refresh is used. */
  keep(questions: Iterable<Question>): void {
    const wanted = new Map<string, Question>();
    for (const question of questions) {
      const id = key(question.host, question.family);
      const other = wanted.get(id);
      wanted.set(id, other === undefined || other.refresh > question.refresh ? question : other);
    }
    for (const [id, entry] of this.#entries) {
      if (wanted.has(id)) continue;
      clearTimeout(entry.timer);
      this.#entries.delete(id);
    }
    for (const [id, { host, family, refresh, respectTtl }] of wanted) {
      const entry = this.#entries.get(id);
      if (entry !== undefined) {
        entry.refresh = refresh;
        entry.respectTtl = respectTtl;
        continue;
      }
      const fresh: Entry = {
        host,
        family,
        refresh,
        respectTtl,
        addresses: undefined,
        tried: false,
        failures: 0,
        timer: undefined,
      };
      this.#entries.set(id, fresh);
      this.#enqueue(id, fresh);
    }
  }

  /** Stops all lookups. */
  close(): void {
    this.#closed = true;
    for (const { timer } of this.#entries.values()) clearTimeout(timer);
    this.#entries.clear();
    this.#queue.length = 0;
  }

  #enqueue(id: string, entry: Entry): void {
    this.#queue.push([id, entry]);
    this.#next();
  }

  #next(): void {
    while (this.#running < AT_ONCE) {
      const [id, entry] = this.#queue.shift() ?? [];
      if (id === undefined || entry === undefined) return;
      if (this.#entries.get(id) !== entry) continue;
      this.#running++;
      void this.#ask(id, entry).finally(() => {
        this.#running--;
        this.#next();
      });
    }
  }

  async #ask(id: string, entry: Entry): Promise<void> {
    let answer: Answer | undefined;
    try {
      answer = await this.#lookup(entry.host, entry.family);
    } catch {
      entry.failures++;
    }
    if (this.#closed || this.#entries.get(id) !== entry) return;
    const first = !entry.tried;
    entry.tried = true;
    let pause: number;
    if (answer === undefined) {
      pause = Math.min(RETRY_FIRST * 2 ** (entry.failures - 1), RETRY_LONGEST);
    } else {
      entry.failures = 0;
      const wished = entry.respectTtl ? answer.ttl : entry.refresh;
      pause = Math.min(Math.max(wished, SHORTEST), LONGEST);
    }
    // Unreferenced: lookups do not keep the process alive.
    entry.timer = setTimeout(() => this.#enqueue(id, entry), pause * 1000);
    entry.timer.unref?.();
    const before = entry.addresses;
    if (answer !== undefined) {
      const addresses = [...new Set(answer.addresses.map(canonicalAddress))]
        .filter((one) => one !== undefined)
        .sort();
      // A name that no longer resolves keeps its addresses: a fault of its zone must not empty a cluster.
      if (addresses.length > 0 || before === undefined) entry.addresses = addresses;
    }
    if (first || !sameAddresses(before, entry.addresses)) this.#announce(entry.host);
  }

  #announce(host: string): void {
    const scheduled = this.#announced.size > 0;
    this.#announced.add(host);
    // The same host may be announced twice (for its other family).
    if (scheduled) return;
    setImmediate(() => {
      const hosts = this.#announced;
      this.#announced = new Set();
      if (!this.#closed) this.#changed(hosts);
    });
  }
}

function key(host: string, family: Family): string {
  return `${family} ${host}`;
}

function sameAddresses(a: readonly string[] | undefined, b: readonly string[] | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  return a.length === b.length && a.every((address, i) => address === b[i]);
}

/** Codes of a name server that answered: there is no such name, or it has no address of that family. */
const NO_SUCH = new Set(["ENOTFOUND", "ENODATA"]);
/** The TTL of an answer without one (the hosts file), seconds. */
const UNSAID_TTL = 30;

/**
 * Looks up names as the machine does. First it asks the name servers (`servers` instead of the machine's, if given,
 * each `ADDRESS` or `ADDRESS:PORT`), which give a TTL. Then it asks the system's resolver, which also reads
 * /etc/hosts and search domains.
 */
export function systemLookup(servers?: readonly string[]): Lookup {
  return async (host, family) => {
    // A new resolver each time: an old one would miss a change of /etc/resolv.conf.
    const resolver = new dns.promises.Resolver({ timeout: 2_000, tries: 2 });
    if (servers !== undefined) resolver.setServers(servers);
    let failure: unknown;
    try {
      const records =
        family === 4
          ? await resolver.resolve4(host, { ttl: true })
          : await resolver.resolve6(host, { ttl: true });
      if (records.length > 0) {
        return {
          addresses: records.map(({ address }) => address),
          ttl: Math.min(...records.map(({ ttl }) => ttl)),
        };
      }
    } catch (error) {
      if (!NO_SUCH.has(codeOf(error) ?? "")) failure = error;
    }
    try {
      const found = await dns.promises.lookup(host, { family, all: true });
      if (found.length > 0) return { addresses: found.map(({ address }) => address), ttl: UNSAID_TTL };
    } catch {
      // The result of the name servers is used: no such name, or no answer.
    }
    if (failure !== undefined) throw failure;
    return { addresses: [], ttl: UNSAID_TTL };
  };
}
