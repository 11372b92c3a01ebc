/**
 * IP addresses as text and as the 16 bytes that the kernel tables use.
 *
 * Text is canonical: what `canonicalAddress` gives is the only spelling that the model holds, so that two
 * addresses are the same exactly when their strings are.
 */
import { isIPv6 } from "node:net";

/** The 96 bits before an IPv4 address in its v4-mapped IPv6 form (RFC 4291, 2.5.5.2). */
const V4_MAPPED_PREFIX = 96;

/** Whether canonical text is an IPv4 address (a v4-mapped address has the IPv4 form). */
export function isV4(address: string): boolean {
  return address.indexOf(":") < 0;
}

/**
 * The 16 bytes, network order, of an IPv4 (v4-mapped) or IPv6 text.
 * Gives undefined when `text` is no IP address (a scope id such as fe80::1%eth0 is none).
 */
export function parseAddress(text: string): Uint8Array | undefined {
  const v4 = parseV4(text);
  if (v4 !== undefined) return mapped(v4);
  if (!isIPv6(text) || text.includes("%")) return undefined;
  const bytes = new Uint8Array(new ArrayBuffer(16));
  const [head = "", tail] = text.split("::");
  const front = groups(head);
  const back = tail === undefined ? [] : groups(tail);
  const gap = tail === undefined ? 0 : 8 - front.length - back.length;
  const words = [...front, ...new Array<number>(gap).fill(0), ...back];
  words.forEach((word, i) => {
    bytes[i * 2] = word >> 8;
    bytes[i * 2 + 1] = word & 0xff;
  });
  return bytes;
}

/** As `parseAddress`. Throws RangeError for a text that is no address. */
export function addressBytes(text: string): Uint8Array {
  const bytes = parseAddress(text);
  if (!bytes) throw new RangeError(`${text} is not an address`);
  return bytes;
}

/** The text of 16 bytes in network order: dotted for v4-mapped ones, else RFC 5952. */
export function formatAddress(bytes: Uint8Array): string {
  if (isMapped(bytes)) return `${bytes[12]}.${bytes[13]}.${bytes[14]}.${bytes[15]}`;
  const words: number[] = [];
  for (let i = 0; i < 16; i += 2) words.push(((bytes[i] ?? 0) << 8) | (bytes[i + 1] ?? 0));
  const run = longestZeroRun(words);
  const hex = (part: number[]) => part.map((word) => word.toString(16)).join(":");
  if (run.length < 2) return hex(words);
  return `${hex(words.slice(0, run.start))}::${hex(words.slice(run.start + run.length))}`;
}

/** The canonical spelling of an address; undefined when `text` is no address. Accepts brackets around IPv6. */
export function canonicalAddress(text: string): string | undefined {
  const bare = text.startsWith("[") && text.endsWith("]") ? text.slice(1, -1) : text;
  if (parseV4(bare) !== undefined) return bare;
  const bytes = parseAddress(bare);
  return bytes && formatAddress(bytes);
}

/** An address block. `length` counts the bits of the address's own family (0 to 32, or 0 to 128). */
export interface Prefix {
  address: string;
  length: number;
}

/**
 * Parses `ADDRESS` or `ADDRESS/LENGTH` (brackets allowed around the IPv6 address or the whole) and clears
 * the host bits. Gives undefined when it is neither.
 */
export function parsePrefix(text: string): Prefix | undefined {
  const bare = text.startsWith("[") && text.endsWith("]") ? text.slice(1, -1) : text;
  const slash = bare.lastIndexOf("/");
  const address = canonicalAddress(slash < 0 ? bare : bare.slice(0, slash));
  if (address === undefined) return undefined;
  const width = isV4(address) ? 32 : 128;
  const digits = slash < 0 ? String(width) : bare.slice(slash + 1);
  if (!/^\d{1,3}$/.test(digits) || Number(digits) > width) return undefined;
  return maskPrefix({ address, length: Number(digits) });
}

/** The prefix with its host bits cleared, the address canonical. */
export function maskPrefix(prefix: Prefix): Prefix {
  const bytes = parseAddress(prefix.address);
  if (!bytes) return prefix;
  const bits = prefixBits(prefix);
  for (let i = 0; i < 16; i++) {
    const keep = Math.min(8, Math.max(0, bits - i * 8));
    bytes[i] = (bytes[i] ?? 0) & (0xff << (8 - keep)) & 0xff;
  }
  return { address: formatAddress(bytes), length: prefix.length };
}

/** The prefix length in the 16-byte form: for IPv4, 96 plus the length. */
export function prefixBits(prefix: Prefix): number {
  return isV4(prefix.address) ? V4_MAPPED_PREFIX + prefix.length : prefix.length;
}

/** Whether `address` (canonical text) lies in `prefix`. Families never mix. */
export function contains(prefix: Prefix, address: string): boolean {
  const block = parseV4(prefix.address);
  const bits = parseV4(address);
  if (block !== undefined && bits !== undefined) {
    const shift = 32 - prefix.length;
    return shift >= 32 || block >>> shift === bits >>> shift;
  }
  // Fast path for different families: every frontend is compared with a list of blocks.
  if (block !== undefined || bits !== undefined) return false;
  return maskPrefix({ address, length: prefix.length }).address === maskPrefix(prefix).address;
}

/** The 32 bits of a dotted IPv4 text, the first octet the highest; undefined when it is none. */
export function parseV4(text: string): number | undefined {
  if (text.length > LONGEST_V4) return undefined;
  for (let i = 0; i < text.length; i++) v4Text[i] = text.charCodeAt(i);
  return parseV4Bytes(v4Text, 0, text.length);
}

/**
 * Parses dotted IPv4 text in bytes [start, end), like parseV4. Written by hand, since a start parses 100,000
 * endpoints. Rejects leading zeros, like inet_pton(3).
 */
export function parseV4Bytes(bytes: Uint8Array, start: number, end: number): number | undefined {
  let bits = 0;
  let octet = 0;
  let digits = 0;
  let dots = 0;
  for (let i = start; i < end; i++) {
    const code = bytes[i] ?? 0;
    if (code === DOT) {
      if (digits === 0) return undefined;
      bits = bits * 256 + octet;
      octet = 0;
      digits = 0;
      dots++;
    } else {
      const digit = code - ZERO;
      if (digit < 0 || digit > 9 || (digits > 0 && octet === 0)) return undefined;
      octet = octet * 10 + digit;
      digits++;
      if (octet > 255) return undefined;
    }
  }
  return dots === 3 && digits > 0 ? bits * 256 + octet : undefined;
}

/** The dotted text of 32 bits. */
export function formatV4(bits: number): string {
  return `${bits >>> 24}.${(bits >>> 16) & 255}.${(bits >>> 8) & 255}.${bits & 255}`;
}

/** "255.255.255.255" */
const LONGEST_V4 = 15;
const v4Text = new Uint8Array(LONGEST_V4);
const DOT = 46;
const ZERO = 48;

function mapped(v4: number): Uint8Array {
  const bytes = new Uint8Array(new ArrayBuffer(16));
  bytes[10] = 0xff;
  bytes[11] = 0xff;
  bytes[12] = v4 >>> 24;
  bytes[13] = v4 >>> 16;
  bytes[14] = v4 >>> 8;
  bytes[15] = v4;
  return bytes;
}

function isMapped(bytes: Uint8Array): boolean {
  for (let i = 0; i < 10; i++) if (bytes[i] !== 0) return false;
  return bytes[10] === 0xff && bytes[11] === 0xff;
}

/** The 16-bit words of one side of `::`; a dotted IPv4 tail counts as two. */
function groups(side: string): number[] {
  if (side === "") return [];
  return side.split(":").flatMap((group) => {
    if (!group.includes(".")) return [Number.parseInt(group, 16)];
    const octets = group.split(".").map(Number);
    return [((octets[0] ?? 0) << 8) | (octets[1] ?? 0), ((octets[2] ?? 0) << 8) | (octets[3] ?? 0)];
  });
}

function longestZeroRun(words: number[]): { start: number; length: number } {
  let best = { start: 0, length: 0 };
  let start = 0;
  words.forEach((word, i) => {
    if (word !== 0) start = i + 1;
    else if (i + 1 - start > best.length) best = { start, length: i + 1 - start };
  });
  return best;
}
