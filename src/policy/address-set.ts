/** Sets of address blocks. A lookup takes constant time. */
import { isV4, type Prefix, parseAddress, parsePrefix, prefixBits } from "../mesh/address.ts";

/** An address as a 128-bit number, IPv4 in its v4-mapped form. undefined for an invalid text. */
export function addressNumber(address: string): bigint | undefined {
  const bytes = parseAddress(address);
  return bytes && numberOf(bytes);
}

function numberOf(bytes: Uint8Array): bigint {
  const view = new DataView(bytes.buffer, bytes.byteOffset, 16);
  return (view.getBigUint64(0) << 64n) | view.getBigUint64(8);
}

/** A set of blocks. Families never mix: ::/0 contains no IPv4 address. */
export class AddressSet {
  readonly prefixes: readonly Prefix[];
  /** By the bits that count (of 128), the highest of which are the key. */
  readonly #v4 = new Map<bigint, Set<bigint>>();
  readonly #v6 = new Map<bigint, Set<bigint>>();

  /** Throws RangeError for an invalid block. */
  constructor(prefixes: Iterable<string>) {
    this.prefixes = [...prefixes].map(blockOf);
    for (const prefix of this.prefixes) {
      const number = addressNumber(prefix.address) ?? 0n;
      const shift = BigInt(128 - prefixBits(prefix));
      const byShift = isV4(prefix.address) ? this.#v4 : this.#v6;
      const keys = byShift.get(shift) ?? new Set();
      keys.add(number >> shift);
      byShift.set(shift, keys);
    }
  }

  /** `number` is addressNumber's; `v4` says which family it is of. */
  has(number: bigint, v4: boolean): boolean {
    for (const [shift, keys] of v4 ? this.#v4 : this.#v6) if (keys.has(number >> shift)) return true;
    return false;
  }
}

/** Throws RangeError. */
export function blockOf(text: string): Prefix {
  const prefix = parsePrefix(text);
  if (!prefix) throw new RangeError(`${JSON.stringify(text)} is not a block of addresses`);
  return prefix;
}
