/**
 * Header compression of HTTP/2 (RFC 7541): a complete decoder, and an encoder that writes only literals. There is no
 * maintained library with limits on the decoded size.
 */

/** Headers in order, names in lower case. */
export type Headers = [name: string, value: string][];

/** The header block violates RFC 7541 or a limit. The connection ends with COMPRESSION_ERROR, because its state is lost. */
export class HpackError extends Error {
  constructor(reason: string) {
    super(reason);
    this.name = "HpackError";
  }
}

/** SETTINGS_HEADER_TABLE_SIZE that we offer: the default. */
const TABLE_SIZE = 4096;
/** The size of an entry beside its text (RFC 7541 section 4.1). */
const ENTRY = 32;
/** Limit of a decoded header list, counted as in RFC 9113 section 6.5.2. */
export const MAX_HEADER_LIST = 32 * 1024;

const STATIC: readonly [string, string][] = [
  ":authority |:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https|:status 200|:status 204",
  ":status 206|:status 304|:status 400|:status 404|:status 500|accept-charset |accept-encoding gzip, deflate",
  "accept-language |accept-ranges |accept |access-control-allow-origin |age |allow |authorization |cache-control ",
  "content-disposition |content-encoding |content-language |content-length |content-location |content-range ",
  "content-type |cookie |date |etag |expect |expires |from |host |if-match |if-modified-since |if-none-match |if-range ",
  "if-unmodified-since |last-modified |link |location |max-forwards |proxy-authenticate |proxy-authorization |range ",
  "referer |refresh |retry-after |server |set-cookie |strict-transport-security |transfer-encoding |user-agent |vary ",
  "via |www-authenticate ",
]
  .join("|")
  .split("|")
  .map((entry) => {
    const at = entry.indexOf(" ");
    return [entry.slice(0, at), entry.slice(at + 1)];
  });

/** Length in bits of the code of each byte 0 to 255 and of EOS, as one digit of base 36 each (RFC 7541 appendix B). */
const CODE_LENGTHS =
  "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6cad67777777777777777777777878djde6f565" +
  "65666577666567655677777fbedskmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmolmnnllmlnmnnkmmmnmmnqqkjmnmp" +
  "qqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrqu";
const EOS = 256;

/** The codes are canonical: of each length, the first code, how many there are, and where their symbols begin. */
const { first, count, start, symbols } = canonicalCodes();

function canonicalCodes() {
  const lengths = [...CODE_LENGTHS].map((digit) => Number.parseInt(digit, 36));
  const symbols = lengths.map((_, symbol) => symbol);
  symbols.sort((a, b) => (lengths[a] ?? 0) - (lengths[b] ?? 0) || a - b);
  const count = new Array<number>(31).fill(0);
  for (const length of lengths) count[length] = (count[length] ?? 0) + 1;
  const first = new Array<number>(31).fill(0);
  const start = new Array<number>(31).fill(0);
  for (let length = 1, code = 0, at = 0; length <= 30; length++) {
    code *= 2;
    first[length] = code;
    start[length] = at;
    code += count[length] ?? 0;
    at += count[length] ?? 0;
  }
  return { first, count, start, symbols };
}

/** Decodes a Huffman string (RFC 7541 section 5.2), latin1. Throws HpackError on EOS, and on padding that is no prefix of EOS. */
export function decodeHuffman(bytes: Uint8Array): string {
  const text: number[] = [];
  let code = 0;
  let length = 0;
  for (const byte of bytes) {
    for (let bit = 7; bit >= 0; bit--) {
      code = code * 2 + ((byte >> bit) & 1);
      length++;
      if (length > 30) throw new HpackError("no such Huffman code");
      const index = code - (first[length] ?? 0);
      if (index >= (count[length] ?? 0)) continue;
      const symbol = symbols[(start[length] ?? 0) + index] ?? EOS;
      if (symbol === EOS) throw new HpackError("a Huffman string holds EOS");
      text.push(symbol);
      code = 0;
      length = 0;
    }
  }
  if (length > 7 || code !== 2 ** length - 1) throw new HpackError("a Huffman string ends within a code");
  return Buffer.from(text).toString("latin1");
}

/** The state of one direction of one connection: every header block of it must come through here, in order. */
export class HpackDecoder {
  /** The newest entry is first. */
  #entries: [string, string][] = [];
  #size = 0;
  #limit = TABLE_SIZE;

  /** Decodes one complete header block. Throws HpackError; the decoder must not be used afterwards. */
  decode(block: Uint8Array): Headers {
    const headers: Headers = [];
    let listSize = 0;
    let at = 0;
    const integer = (prefix: number): number => {
      const mask = 2 ** prefix - 1;
      let value = (block[at++] ?? 0) & mask;
      if (value < mask) return value;
      for (let shift = 0; ; shift += 7) {
        const byte = block[at++];
        if (byte === undefined || shift > 21) throw new HpackError("an integer is cut off or too large");
        value += (byte & 127) * 2 ** shift;
        if (byte < 128) return value;
      }
    };
    const string = (): string => {
      const head = block[at];
      if (head === undefined) throw new HpackError("a string is missing");
      const length = integer(7);
      if (length > block.length - at) throw new HpackError("a string is cut off");
      const bytes = block.subarray(at, at + length);
      at += length;
      return head & 128 ? decodeHuffman(bytes) : Buffer.from(bytes).toString("latin1");
    };
    while (at < block.length) {
      const head = block[at] ?? 0;
      if ((head & 0xe0) === 0x20) {
        if (headers.length > 0) throw new HpackError("the table's size changes within the headers");
        this.#resize(integer(5));
        continue;
      }
      let entry: [string, string];
      if (head & 0x80) {
        entry = this.#entry(integer(7));
      } else {
        const indexed = (head & 0xc0) === 0x40;
        const index = integer(indexed ? 6 : 4);
        const name = index === 0 ? string() : this.#entry(index)[0];
        entry = [name, string()];
        if (indexed) this.#add(entry);
      }
      listSize += entry[0].length + entry[1].length + ENTRY;
      if (listSize > MAX_HEADER_LIST) throw new HpackError("the header list is too long");
      headers.push(entry);
    }
    return headers;
  }

  #entry(index: number): [string, string] {
    const entry = STATIC[index - 1] ?? this.#entries[index - 1 - STATIC.length];
    if (!entry) throw new HpackError(`there is no table entry ${index}`);
    return entry;
  }

  #add(entry: [string, string]): void {
    this.#entries.unshift(entry);
    this.#size += entry[0].length + entry[1].length + ENTRY;
    this.#evict();
  }

  #resize(limit: number): void {
    if (limit > TABLE_SIZE) throw new HpackError("the table is made larger than allowed");
    this.#limit = limit;
    this.#evict();
  }

  #evict(): void {
    while (this.#size > this.#limit) {
      const last = this.#entries.pop();
      if (!last) break;
      this.#size -= last[0].length + last[1].length + ENTRY;
    }
  }
}

/** Encodes a header block of literals without indexing, with names from the static table where possible. */
export function encodeHeaders(headers: Headers): Buffer {
  const parts: Buffer[] = [];
  for (const [name, value] of headers) {
    const index = STATIC.findIndex((entry) => entry[0] === name) + 1;
    parts.push(encodeInteger(index, 4, 0));
    for (const text of index === 0 ? [name, value] : [value]) {
      const bytes = Buffer.from(text, "latin1");
      parts.push(encodeInteger(bytes.length, 7, 0), bytes);
    }
  }
  return Buffer.concat(parts);
}

function encodeInteger(value: number, prefix: number, pattern: number): Buffer {
  const mask = 2 ** prefix - 1;
  if (value < mask) return Buffer.of(pattern | value);
  const bytes = [pattern | mask];
  let rest = value - mask;
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128);
  return Buffer.from([...bytes, rest]);
}
