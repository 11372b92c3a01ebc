/** The two ledgers that the ends of the connections write, as ends.c lays them out. */

export const KIND = { short: 1, opened: 2, closed: 3, direct: 4 } as const;
export const FLAW = { wrongBytes: 1, wrongPeer: 2, noConnect: 4, noAnswer: 8, atOnce: 16 } as const;
/** No endpoint answered; no service was asked. */
export const NOBODY = 0xffff;

const MADE = 40;
const TAKEN = 16;
const HIGH = 2 ** 32;

/** The client's entries. Times are nanoseconds of CLOCK_MONOTONIC. */
export class MadeLedger {
  readonly length: number;
  readonly #bytes: Uint8Array;
  readonly #shorts: Uint16Array;
  readonly #words: Uint32Array;

  /** Reads whole entries from memory that is aligned to 4 bytes. */
  constructor(bytes: Uint8Array) {
    requireWhole(bytes, MADE);
    this.length = bytes.length / MADE;
    this.#bytes = bytes;
    this.#shorts = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
    this.#words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  }

  /** Which client made it. */
  maker(i: number): number {
    return this.#word(i, 1) >>> 8;
  }

  /** Which of the client's connections it is. */
  serial(i: number): number {
    return this.#word(i, 0) + (this.#word(i, 1) & 0xff) * HIGH;
  }

  /** Before connect(). */
  began(i: number): number {
    return this.#word(i, 2) + this.#word(i, 3) * HIGH;
  }

  /** How long connect() took, ns. */
  connectTime(i: number): number {
    return this.#word(i, 4);
  }

  /** Until the answer, or its end, us. */
  totalTime(i: number): number {
    return this.#word(i, 5);
  }

  service(i: number): number {
    return this.#short(i, 12);
  }

  /** Payload bytes that the client sent on the whole connection, as far as it went. */
  sent(i: number): number {
    return this.#word(i, 8);
  }

  received(i: number): number {
    return this.#word(i, 9);
  }

  endpoint(i: number): number {
    return this.#short(i, 13);
  }

  /** An errno, or 0. */
  error(i: number): number {
    return this.#short(i, 14);
  }

  kind(i: number): number {
    return this.#bytes[i * MADE + 30] ?? 0;
  }

  flaws(i: number): number {
    return this.#bytes[i * MADE + 31] ?? 0;
  }

  #word(i: number, at: number): number {
    return this.#words[i * (MADE / 4) + at] ?? 0;
  }

  #short(i: number, at: number): number {
    return this.#shorts[i * (MADE / 2) + at] ?? 0;
  }
}

/** The server's entries. */
export class TakenLedger {
  readonly length: number;
  readonly #shorts: Uint16Array;
  readonly #words: Uint32Array;

  constructor(bytes: Uint8Array) {
    requireWhole(bytes, TAKEN);
    this.length = bytes.length / TAKEN;
    this.#shorts = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
    this.#words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  }

  maker(i: number): number {
    return (this.#words[i * 4 + 1] ?? 0) >>> 8;
  }

  serial(i: number): number {
    return (this.#words[i * 4] ?? 0) + ((this.#words[i * 4 + 1] ?? 0) & 0xff) * HIGH;
  }

  /** That the client says it wanted. */
  service(i: number): number {
    return this.#shorts[i * 8 + 4] ?? 0;
  }

  endpoint(i: number): number {
    return this.#shorts[i * 8 + 5] ?? 0;
  }

  error(i: number): number {
    return this.#shorts[i * 8 + 6] ?? 0;
  }

  /** 0: the entry of a connection. Otherwise of what went wrong with one. */
  flaws(i: number): number {
    return this.#shorts[i * 8 + 7] ?? 0;
  }
}

function requireWhole(bytes: Uint8Array, size: number): void {
  if (bytes.length % size !== 0)
    throw new RangeError(`${bytes.length} bytes are no entries of ${size} bytes`);
}
