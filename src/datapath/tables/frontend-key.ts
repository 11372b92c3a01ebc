/** Encodes frontends as keys of the kernel (struct frontend_key and struct prefix_key of bpf/maps/tables.h). */
import { formatAddress, isV4, parseAddress, prefixBits } from "../../mesh/address.ts";
import type { Match } from "../../mesh/model.ts";
import * as layout from "./layout.gen.ts";

const TCP = 6;
const V4_MAPPED_BITS = 96;

const exact = layout.frontend_key.fields;
const prefix = layout.prefix_key.fields;
const { FAMILY_V4, FAMILY_V6 } = layout.enums.family;
/** Bits of a prefix key before its family, and before its address. */
const PORT_WIDE_BITS = (prefix.family.offset - prefix.port.offset) * 8;
const HEAD_BITS = (prefix.address.offset - prefix.port.offset) * 8;

export const EXACT_KEY_SIZE = layout.frontend_key.size;
const EXACT_KEY_WORDS = EXACT_KEY_SIZE / 4;
export const PREFIX_KEY_SIZE = layout.prefix_key.size;

/** The key of an exact frontend. Throws TypeError when `address` is not an IP address. */
export function exactKey(address: string, port: number): Uint8Array {
  const key = new Uint8Array(new ArrayBuffer(EXACT_KEY_SIZE));
  putExactKey(key, 0, address, port);
  return key;
}

/** Writes such a key at offset `at` of `keys`, which must be zero there. */
export function putExactKey(keys: Uint8Array, at: number, address: string, port: number): void {
  keys.set(bytesOf(address), at + exact.address.offset);
  keys[at + exact.port.offset] = port >> 8;
  keys[at + exact.port.offset + 1] = port & 0xff;
  keys[at + exact.protocol.offset] = TCP;
}

/** The key of a block and port; without a block, of all addresses of both families. */
export function prefixKey(block: { address: string; length: number } | undefined, port: number): Uint8Array {
  const key = new Uint8Array(new ArrayBuffer(PREFIX_KEY_SIZE));
  const bits = block ? HEAD_BITS + prefixBits(block) : PORT_WIDE_BITS;
  new Uint32Array(key.buffer)[prefix.bits.offset >> 2] = bits;
  key[prefix.protocol.offset] = TCP;
  key[prefix.port.offset] = port >> 8;
  key[prefix.port.offset + 1] = port & 0xff;
  if (!block) return key;
  key[prefix.family.offset] = isV4(block.address) ? FAMILY_V4 : FAMILY_V6;
  key.set(bytesOf(block.address), prefix.address.offset);
  return key;
}

export function matchOfExactKey(key: Uint8Array): Match {
  return {
    kind: "address",
    address: addressAt(key, exact.address.offset),
    port: portAt(key, exact.port.offset),
  };
}

export function matchOfPrefixKey(key: Uint8Array): Match {
  const bits = new DataView(key.buffer, key.byteOffset).getUint32(prefix.bits.offset, LITTLE_ENDIAN);
  const port = portAt(key, prefix.port.offset);
  if (bits === PORT_WIDE_BITS) return { kind: "port", port };
  const v4 = key[prefix.family.offset] === FAMILY_V4;
  const length = bits - HEAD_BITS - (v4 ? V4_MAPPED_BITS : 0);
  return { kind: "prefix", address: addressAt(key, prefix.address.offset), length, port };
}

/**
 * The check word that binds a value to its key (struct frontend_ref); bpf/connect/frontend.h computes the same. `words` are
 * consecutive keys; `index` selects one.
 */
export function fingerprint(words: Uint32Array, index: number): number {
  let hash = 0x9e3779b9;
  for (let word = index * EXACT_KEY_WORDS; word < (index + 1) * EXACT_KEY_WORDS; word++) {
    hash = Math.imul(hash ^ (words[word] ?? 0), 0x85ebca6b);
    hash ^= hash >>> 13;
  }
  return hash >>> 0;
}

const LITTLE_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

function bytesOf(address: string): Uint8Array {
  const bytes = parseAddress(address);
  if (!bytes) throw new TypeError(`"${address}" is not an IP address`);
  return bytes;
}

function addressAt(key: Uint8Array, offset: number): string {
  return formatAddress(key.subarray(offset, offset + 16));
}

function portAt(key: Uint8Array, offset: number): number {
  return ((key[offset] ?? 0) << 8) | (key[offset + 1] ?? 0);
}
