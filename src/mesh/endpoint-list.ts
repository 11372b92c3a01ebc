/**
 * Endpoints packed into words, 24 bytes each. A mesh may have a hundred thousand endpoints; objects with strings
 * would need ten times the memory and seconds of garbage collection.
 */
import { formatAddress, parseAddress, parseV4 } from "./address.ts";

export interface Endpoint {
  address: string;
  port: number;
  /** Positive integer. */
  weight: number;
  healthy: boolean;
  /** How it is reached: n for `transports[n - 1]` of its cluster, absent for plaintext. At most MAX_TRANSPORTS. */
  transport?: number;
}

/** Transports that one cluster's endpoints can have. */
export const MAX_TRANSPORTS = 2 ** 14 - 1;

/**
 * Words of one endpoint: the 16 address bytes in network order as they are in memory; port (bits 0 to 15), health (16), a
 * reader's mark (17) and the number of its transport (18 to 31); weight.
 */
export const ENDPOINT_WORDS = 6;
const PORT = 4;
const WEIGHT = 5;
const HEALTHY = 1 << 16;
/** Only in a buffer: a mark for the reader. */
const MARKED = 1 << 17;
const TRANSPORT_SHIFT = 18;

/** Scratch memory for one address, big-endian. */
const draft = new DataView(new ArrayBuffer(16));
const draftBytes = new Uint8Array(draft.buffer);
const draftWords = new Uint32Array(draft.buffer);

/** An immutable list of endpoints. */
export class EndpointList implements Iterable<Endpoint> {
  static readonly empty = new EndpointList(new Uint32Array(0));

  readonly words: Uint32Array;

  constructor(words: Uint32Array) {
    this.words = words;
  }

  get length(): number {
    return this.words.length / ENDPOINT_WORDS;
  }

  /** Packs endpoints in the given order. Throws TypeError for an invalid address. */
  static of(endpoints: readonly Endpoint[]): EndpointList {
    const buffer = new EndpointBuffer();
    for (const { address, port, weight, healthy, transport } of endpoints)
      buffer.push(address, port, weight, healthy, false, transport);
    return buffer.pick(endpoints.map((_, i) => i));
  }

  get(i: number): Endpoint {
    const endpoint = {
      address: this.address(i),
      port: this.port(i),
      weight: this.weight(i),
      healthy: this.healthy(i),
    };
    const transport = this.transport(i);
    return transport === 0 ? endpoint : { ...endpoint, transport };
  }

  /** Canonical text. */
  address(i: number): string {
    const at = i * ENDPOINT_WORDS;
    for (let word = 0; word < 4; word++) draftWords[word] = this.words[at + word] ?? 0;
    return formatAddress(draftBytes);
  }

  port(i: number): number {
    return portAt(this.words, i * ENDPOINT_WORDS);
  }

  weight(i: number): number {
    return this.words[i * ENDPOINT_WORDS + WEIGHT] ?? 0;
  }

  healthy(i: number): boolean {
    return ((this.words[i * ENDPOINT_WORDS + PORT] ?? 0) & HEALTHY) !== 0;
  }

  /** 0 for plaintext, n for `transports[n - 1]` of the cluster. */
  transport(i: number): number {
    return (this.words[i * ENDPOINT_WORDS + PORT] ?? 0) >>> TRANSPORT_SHIFT;
  }

  isV4(i: number): boolean {
    return isV4At(this.words, i * ENDPOINT_WORDS);
  }

  /** Address and port as a number, for IPv4; undefined for IPv6. Equal exactly for the same address and port. */
  v4Key(i: number): number | undefined {
    return v4KeyAt(this.words, i * ENDPOINT_WORDS);
  }

  /** The same endpoints with other transports; those for which `number` gives undefined are left out. */
  renumbered(number: (transport: number) => number | undefined): EndpointList {
    const words = new Uint32Array(this.words.length);
    let to = 0;
    for (let i = 0; i < this.length; i++) {
      const transport = number(this.transport(i));
      if (transport === undefined) continue;
      words.set(this.words.subarray(i * ENDPOINT_WORDS, (i + 1) * ENDPOINT_WORDS), to);
      const rest = (words[to + PORT] ?? 0) & ((1 << TRANSPORT_SHIFT) - 1);
      words[to + PORT] = rest | (transport << TRANSPORT_SHIFT);
      to += ENDPOINT_WORDS;
    }
    return new EndpointList(to === words.length ? words : words.slice(0, to));
  }

  equals(other: EndpointList): boolean {
    if (this.words.length !== other.words.length) return false;
    for (let i = 0; i < this.words.length; i++) if (this.words[i] !== other.words[i]) return false;
    return true;
  }

  map<T>(what: (endpoint: Endpoint) => T): T[] {
    return Array.from({ length: this.length }, (_, i) => what(this.get(i)));
  }

  *[Symbol.iterator](): Iterator<Endpoint> {
    for (let i = 0; i < this.length; i++) yield this.get(i);
  }

  toJSON(): Endpoint[] {
    return [...this];
  }
}

/** Word 2 of every v4-mapped address. */
draft.setUint32(0, 0xffff);
const MAPPED = draftWords[0] ?? 0;

/** A growing list of endpoints for readers. One buffer serves a whole configuration; `pick` copies the result. */
export class EndpointBuffer {
  words = new Uint32Array(64 * ENDPOINT_WORDS);
  length = 0;

  clear(): void {
    this.length = 0;
  }

  /** Adds an endpoint. Throws TypeError when `address` is no IP address. */
  push(address: string, port: number, weight: number, healthy: boolean, marked = false, transport = 0): void {
    const v4 = parseV4(address);
    if (v4 !== undefined) {
      this.pushV4(v4, port, weight, healthy, marked, transport);
      return;
    }
    const bytes = parseAddress(address);
    if (!bytes) throw new TypeError(`"${address}" is not an IP address`);
    const at = this.#grow();
    this.words.set(new Uint32Array(bytes.buffer), at);
    this.#finish(at, port, weight, healthy, marked, transport);
  }

  /** Adds an endpoint by its IPv4 address, the first octet in the highest bits. */
  pushV4(
    address: number,
    port: number,
    weight: number,
    healthy: boolean,
    marked = false,
    transport = 0,
  ): void {
    const at = this.#grow();
    draft.setUint32(0, address);
    this.words[at] = 0;
    this.words[at + 1] = 0;
    this.words[at + 2] = MAPPED;
    this.words[at + 3] = draftWords[0] ?? 0;
    this.#finish(at, port, weight, healthy, marked, transport);
  }

  marked(i: number): boolean {
    return ((this.words[i * ENDPOINT_WORDS + PORT] ?? 0) & MARKED) !== 0;
  }

  weight(i: number): number {
    return this.words[i * ENDPOINT_WORDS + WEIGHT] ?? 0;
  }

  /** Equal exactly for the same address and port. */
  key(i: number): number | string {
    const at = i * ENDPOINT_WORDS;
    return (
      v4KeyAt(this.words, at) ?? `${this.words.subarray(at, at + PORT).join()} ${portAt(this.words, at)}`
    );
  }

  /** Copies the endpoints at these indexes, without their marks. */
  pick(places: readonly number[]): EndpointList {
    const words = new Uint32Array(places.length * ENDPOINT_WORDS);
    let to = 0;
    for (const place of places) {
      const from = place * ENDPOINT_WORDS;
      for (let word = 0; word < ENDPOINT_WORDS; word++) words[to + word] = this.words[from + word] ?? 0;
      words[to + PORT] = (words[to + PORT] ?? 0) & ~MARKED;
      to += ENDPOINT_WORDS;
    }
    return new EndpointList(words);
  }

  /** Compares two endpoints by address bytes and port. Of equal ones a healthy one comes first, then the heaviest. */
  compare(i: number, k: number): number {
    const address = this.#compareAddress(i, k);
    if (address !== 0) return address;
    const left = this.words[i * ENDPOINT_WORDS + PORT] ?? 0;
    const right = this.words[k * ENDPOINT_WORDS + PORT] ?? 0;
    return (right & HEALTHY) - (left & HEALTHY) || this.weight(k) - this.weight(i);
  }

  /** Whether two endpoints have the same address and port. */
  same(i: number, k: number): boolean {
    return this.#compareAddress(i, k) === 0;
  }

  #compareAddress(i: number, k: number): number {
    const here = i * ENDPOINT_WORDS;
    const there = k * ENDPOINT_WORDS;
    for (let word = 0; word < 4; word++) {
      const one = this.words[here + word] ?? 0;
      const other = this.words[there + word] ?? 0;
      if (one !== other) return networkWord(one) - networkWord(other);
    }
    return portAt(this.words, here) - portAt(this.words, there);
  }

  #grow(): number {
    const at = this.length++ * ENDPOINT_WORDS;
    if (at === this.words.length) {
      const larger = new Uint32Array(this.words.length * 2);
      larger.set(this.words);
      this.words = larger;
    }
    return at;
  }

  #finish(
    at: number,
    port: number,
    weight: number,
    healthy: boolean,
    marked: boolean,
    transport: number,
  ): void {
    this.words[at + PORT] =
      port | (healthy ? HEALTHY : 0) | (marked ? MARKED : 0) | (transport << TRANSPORT_SHIFT);
    this.words[at + WEIGHT] = weight;
  }
}

function portAt(words: Uint32Array, at: number): number {
  return (words[at + PORT] ?? 0) & 0xffff;
}

function isV4At(words: Uint32Array, at: number): boolean {
  return words[at] === 0 && words[at + 1] === 0 && words[at + 2] === MAPPED;
}

function v4KeyAt(words: Uint32Array, at: number): number | undefined {
  if (!isV4At(words, at)) return undefined;
  return networkWord(words[at + 3] ?? 0) * 65536 + portAt(words, at);
}

/** Converts a word in memory order to the number that its bytes form in network order. */
function networkWord(word: number): number {
  draftWords[0] = word;
  return draft.getUint32(0);
}
