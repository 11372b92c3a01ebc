/**
 * The first bytes of an inbound connection: TLS or not, and which protocols a ClientHello offers (RFC 8446 section 4.1.2,
 * RFC 7301). It decides whether a TLS connection on a permissive port is the mesh's or the app's own.
 */

export type FirstBytes =
  | { kind: "plaintext" }
  /** More bytes are needed. */
  | { kind: "incomplete" }
  /** TLS. `alpn` are the offered protocols; [] when there are none, or the hello is malformed. */
  | { kind: "tls"; alpn: string[] };

/** Of a larger ClientHello only the first bytes are read. Post-quantum key shares need about 2 KB. */
const LARGEST = 16 * 1024;
/** Records that a ClientHello may span. Each call reads all of them again: thousands of one byte cost seconds. */
const MOST_RECORDS = 16;
const HANDSHAKE = 22;
const CLIENT_HELLO = 1;
const ALPN = 16;

export function readFirstBytes(bytes: Uint8Array): FirstBytes {
  if (bytes.length === 0) return { kind: "incomplete" };
  if (bytes[0] !== HANDSHAKE) return { kind: "plaintext" };
  if (bytes.length > 1 && bytes[1] !== 3) return { kind: "plaintext" };
  const message = messageOf(bytes);
  if (message === "incomplete")
    return bytes.length >= LARGEST ? { kind: "tls", alpn: [] } : { kind: "incomplete" };
  return { kind: "tls", alpn: message ? (alpnOf(message) ?? []) : [] };
}

/** The body of the first handshake message, which may span some records. Undefined: it is not a ClientHello. */
function messageOf(bytes: Uint8Array): Uint8Array | "incomplete" | undefined {
  const parts: Uint8Array[] = [];
  let size = 0;
  for (let at = 0; parts.length < MOST_RECORDS; ) {
    if (bytes.length < at + 5) return "incomplete";
    const length = number(bytes, at + 3, 2);
    if (bytes[at] !== HANDSHAKE || length === 0 || length > LARGEST) return undefined;
    const part = bytes.subarray(at + 5, at + 5 + length);
    parts.push(part);
    size += part.length;
    const head = Buffer.concat(parts, Math.min(size, 4));
    if (size > 0 && head[0] !== CLIENT_HELLO) return undefined;
    if (size >= 4) {
      const wanted = number(head, 1, 3);
      if (wanted > LARGEST) return undefined;
      if (size >= 4 + wanted) return Buffer.concat(parts, 4 + wanted).subarray(4);
    }
    if (part.length < length) return "incomplete";
    at += 5 + length;
  }
  return undefined;
}

/** Undefined for a malformed hello. */
function alpnOf(hello: Uint8Array): string[] | undefined {
  // Version, random; then session, cipher suites and compression methods, each with its length.
  let at = 34;
  for (const width of [1, 2, 1]) {
    if (at + width > hello.length) return undefined;
    at += width + number(hello, at, width);
  }
  if (at + 2 > hello.length) return undefined;
  const end = Math.min(hello.length, at + 2 + number(hello, at, 2));
  for (at += 2; at + 4 <= end; ) {
    const type = number(hello, at, 2);
    const length = number(hello, at + 2, 2);
    at += 4;
    if (at + length > end) return undefined;
    if (type === ALPN) return namesOf(hello.subarray(at, at + length));
    at += length;
  }
  return [];
}

function namesOf(list: Uint8Array): string[] | undefined {
  if (list.length < 2 || number(list, 0, 2) !== list.length - 2) return undefined;
  const names: string[] = [];
  for (let at = 2; at < list.length; ) {
    const length = list[at] ?? 0;
    if (length === 0 || at + 1 + length > list.length) return undefined;
    names.push(Buffer.from(list.subarray(at + 1, at + 1 + length)).toString("latin1"));
    at += 1 + length;
  }
  return names;
}

function number(bytes: Uint8Array, at: number, width: number): number {
  let value = 0;
  for (let i = 0; i < width; i++) value = value * 256 + (bytes[at + i] ?? 0);
  return value;
}
