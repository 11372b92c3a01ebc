/** Compiles the mesh's names to table entries: decides between several claims to a name, adds reverse names and exclusions. */
import { isV4, parseAddress } from "../mesh/address.ts";
import type { Name } from "../mesh/model.ts";
import { wireName } from "./wire.ts";

/** One entry of the table. Its name may begin with "*.". */
export type Entry =
  | { kind: "addresses"; name: string; addresses: readonly string[] }
  /** A reverse name: `target` is a name with an entry. */
  | { kind: "pointer"; name: string; target: string }
  /** An excluded name: its queries pass. */
  | { kind: "pass"; name: string }
  /** "/" and a search domain of the machine: the part before it is looked up alone. */
  | { kind: "search"; name: string };

/** A name without an entry, and the reason. */
export interface Skipped {
  name: string;
  reason: string;
}

/** The rank of a claim: a host's own name wins over another host's short form. */
interface Claim {
  host: string;
  own: boolean;
}

/** The entries of all names. A change costs only the work for the names that it touches. */
export class Entries {
  readonly #hosts = new Map<string, Name>();
  readonly #claims = new Map<string, Claim | Claim[]>();
  /** Hosts by address. */
  readonly #reverse = new Map<string, string | string[]>();
  readonly #skipped = new Map<string, Skipped>();
  #excluded: readonly string[] = [];

  /** Adds, changes or removes a host. Adds to `touched` the names whose entries may differ. */
  set(host: string, name: Name | undefined, touched: Set<string>): void {
    const before = this.#hosts.get(host);
    if (before) {
      for (const alias of [before.host, ...before.aliases]) this.#unclaim(alias, host, touched);
      if (isConcrete(host)) for (const address of before.addresses) this.#unpoint(address, host, touched);
      this.#hosts.delete(host);
      this.#skipped.delete(host);
    }
    if (!name) return;
    this.#hosts.set(host, name);
    for (const alias of [name.host, ...name.aliases]) {
      if (isName(alias)) this.#claim(alias, { host, own: alias === name.host }, touched);
      else this.#skipped.set(host, { name: alias, reason: "it is not a valid DNS name" });
    }
    if (isConcrete(host) && isName(host))
      for (const address of name.addresses) this.#point(address, host, touched);
  }

  /** Sets the excluded names, each with all names below it. Every entry may differ then. */
  exclude(suffixes: readonly string[]): void {
    this.#excluded = suffixes;
  }

  get(entry: string): Entry | undefined {
    if (this.#isExcluded(entry)) return undefined;
    const address = this.#addressOf.get(entry);
    if (address !== undefined) {
      const hosts = this.#reverse.get(address);
      const target = (typeof hosts === "string" ? [hosts] : (hosts ?? [])).find(
        (host) => !this.#isExcluded(host),
      );
      return target === undefined ? undefined : { kind: "pointer", name: entry, target };
    }
    const claim = this.#claims.get(entry);
    const winner = Array.isArray(claim) ? claim[0] : claim;
    const name = winner && this.#hosts.get(winner.host);
    return name && { kind: "addresses", name: entry, addresses: name.addresses };
  }

  /** All claimed names. */
  *names(): IterableIterator<string> {
    yield* this.#claims.keys();
    yield* this.#addressOf.keys();
  }

  get hosts(): number {
    return this.#hosts.size;
  }

  /** Names that the table can't hold. */
  get skipped(): Skipped[] {
    return [...this.#skipped.values()];
  }

  /** Reverse names and their targets. */
  readonly #addressOf = new Map<string, string>();

  #isExcluded(name: string): boolean {
    const bare = name.startsWith("*.") ? name.slice(2) : name;
    return this.#excluded.some((suffix) => bare === suffix || bare.endsWith(`.${suffix}`));
  }

  #claim(entry: string, claim: Claim, touched: Set<string>): void {
    const known = this.#claims.get(entry);
    if (known === undefined) this.#claims.set(entry, claim);
    else
      this.#claims.set(
        entry,
        [...(Array.isArray(known) ? known : [known]), claim].sort(
          (a, b) => Number(b.own) - Number(a.own) || (a.host < b.host ? -1 : 1),
        ),
      );
    touched.add(entry);
  }

  #unclaim(entry: string, host: string, touched: Set<string>): void {
    const known = this.#claims.get(entry);
    if (known === undefined) return;
    const left = Array.isArray(known) ? known.filter((each) => each.host !== host) : [];
    if (left.length === 0) this.#claims.delete(entry);
    else this.#claims.set(entry, left);
    touched.add(entry);
  }

  #point(address: string, host: string, touched: Set<string>): void {
    const known = this.#reverse.get(address);
    if (known === undefined) this.#reverse.set(address, host);
    else this.#reverse.set(address, [...(typeof known === "string" ? [known] : known), host].sort());
    const reverse = reverseName(address);
    this.#addressOf.set(reverse, address);
    touched.add(reverse);
  }

  #unpoint(address: string, host: string, touched: Set<string>): void {
    const known = this.#reverse.get(address);
    const left = Array.isArray(known) ? known.filter((each) => each !== host) : [];
    const reverse = reverseName(address);
    if (left.length > 0) this.#reverse.set(address, left);
    else {
      this.#reverse.delete(address);
      this.#addressOf.delete(reverse);
    }
    touched.add(reverse);
  }
}

/** Whether the table can hold a name, with or without a leading "*.". */
export function isName(name: string): boolean {
  return wireName(name.startsWith("*.") ? name.slice(2) : name) !== undefined;
}

/** The name under in-addr.arpa (RFC 1035, 3.5) or ip6.arpa (RFC 3596, 2.5) of a canonical address. */
export function reverseName(address: string): string {
  if (isV4(address)) return `${address.split(".").reverse().join(".")}.in-addr.arpa`;
  const hex = Buffer.from(parseAddress(address) ?? new Uint8Array(16)).toString("hex");
  return `${[...hex].reverse().join(".")}.ip6.arpa`;
}

function isConcrete(host: string): boolean {
  return !host.startsWith("*.");
}
