/**
 * The addresses of DNS clusters. Names are asked of the machine's name servers, never of the mesh's own names (a
 * cluster's target tends to be called like its service). A name that was known once keeps its last good answer.
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
 * Asks for the addresses of one family. Gives an empty answer when the name exists without any or does not exist,
 * and rejects when nobody could say.
 */
export type Lookup = (host: string, family: Family) => Promise<Answer>;

/** What a DNS cluster needs to know of one name. */
export interface Question {
  host: string;
  family: Family;
  /** Seconds between look-ups. */
  refresh: number;
  /** The answer's TTL counts instead of `refresh`. */
  respectTtl: boolean;
}

/** What is known of a question. */
export interface Known {
  /** Canonical, sorted; undefined while there has been no answer. */
  addresses: readonly string[] | undefined;
  /** The first look-up is over, whatever came out. */
  tried: boolean;
}

interface Entry extends Question {
  addresses: readonly string[] | undefined;
  tried: boolean;
  failures: number;
  timer: ReturnType<typeof setTimeout> | undefined;
}

/** No name is asked for more often than that, whatever its TTL, in seconds. */
const SHORTEST = 1;
const LONGEST = 3600;
/** Seconds between failing look-ups: doubles from the first to the second. */
const RETRY_FIRST = 1;
const RETRY_LONGEST = 30;
/** Look-ups under way at once: a thousand at a time drown a small name server. */
const AT_ONCE = 32;
const UNKNOWN: Known = { addresses: undefined, tried: false };

export class Resolver {
  readonly #lookup: Lookup;
  readonly #changed: (hosts: ReadonlySet<string>) => void;
  readonly #entries = new Map<string, Entry>();
  /** Those that wait for their turn. */
  readonly #queue: [string, Entry][] = [];
  #running = 0;
  #announced = new Set<string>();
  #closed = false;

  /** `changed` is told the hosts that have other addresses than before, once per turn of the event loop. */
  constructor(options: { lookup?: Lookup; changed(hosts: ReadonlySet<string>): void }) {
    this.#lookup = options.lookup ?? systemLookup();
    this.#changed = options.changed;
  }

  /** What is known now; asks for nothing. */
  known(host: string, family: Family): Known {
    return this.#entries.get(key(host, family)) ?? UNKNOWN;
  }

  /** From now on these questions are kept answered, and no others. Of one asked twice the shorter refresh counts. */
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

  /** Stops asking. */
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
    // Unreferenced: names alone keep no process alive.
    entry.timer = setTimeout(() => this.#enqueue(id, entry), pause * 1000);
    entry.timer.unref?.();
    const before = entry.addresses;
    if (answer !== undefined) {
      const addresses = [...new Set(answer.addresses.map(canonicalAddress))]
        .filter((one) => one !== undefined)
        .sort();
      // A name that vanishes keeps what it had: a hiccup of its zone must not empty a cluster.
      if (addresses.length > 0 || before === undefined) entry.addresses = addresses;
    }
    if (first || !sameAddresses(before, entry.addresses)) this.#announce(entry.host);
  }

  #announce(host: string): void {
    const scheduled = this.#announced.size > 0;
    this.#announced.add(host);
    // The same host again (its other family) leaves the size as it is.
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
/** What answers without a TTL (the hosts file) counts for that long, in seconds. */
const UNSAID_TTL = 30;

/**
 * Looks names up as the machine does: first by its name servers (`servers`: those instead, `ADDRESS` or
 * `ADDRESS:PORT`), which tell the TTL, then by the system's resolver, which knows /etc/hosts and search domains.
 */
export function systemLookup(servers?: readonly string[]): Lookup {
  return async (host, family) => {
    // Made anew each time: one that lives long would miss a change of /etc/resolv.conf.
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
      // The servers' own word counts: no such name, or nobody there.
    }
    if (failure !== undefined) throw failure;
    return { addresses: [], ttl: UNSAID_TTL };
  };
}
