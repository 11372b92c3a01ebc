/** Finds what was made of the same bytes before, without making a string of them first. */
import { isText } from "../../istiod/stream/bytes.ts";

const SEED = 0x811c9dc5;
const PRIME = 0x01000193;
/** Longer keys are not kept. */
const LONGEST = 256;

/** A cache of values by bytes, of fixed size: of two that want the same place the later one stays. */
export class SharedBytes<T> {
  readonly #keys: string[];
  readonly #values: (T | undefined)[];

  /** `size`: a power of two. */
  constructor(size: number) {
    this.#keys = new Array<string>(size).fill("");
    this.#values = new Array<T | undefined>(size).fill(undefined);
  }

  /** The value of bytes `start` to `end`; undefined when there is none. */
  get(bytes: Uint8Array, start: number, end: number): T | undefined {
    const place = this.#placeOf(bytes, start, end);
    const known = this.#values[place];
    return known !== undefined && isText(this.#keys[place] ?? "", bytes, start, end) ? known : undefined;
  }

  /** Keeps a value for bytes `start` to `end`, and gives it. */
  put(bytes: Uint8Array, start: number, end: number, value: T): T {
    if (end - start > LONGEST) return value;
    const place = this.#placeOf(bytes, start, end);
    this.#keys[place] = latin1(bytes, start, end);
    this.#values[place] = value;
    return value;
  }

  #placeOf(bytes: Uint8Array, start: number, end: number): number {
    let hash = SEED;
    for (let i = start; i < end; i++) hash = Math.imul(hash ^ (bytes[i] ?? 0), PRIME);
    return (hash ^ (hash >>> 15)) & (this.#keys.length - 1);
  }
}

/** One character for each byte. */
export function latin1(bytes: Uint8Array, start = 0, end = bytes.length): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString("latin1");
}
