/** Names in the wire format of DNS (RFC 1035, 3.1), in lower case and without the root label. */

/** Most bytes of a name without its root label. */
const LONGEST = 254;
const LONGEST_LABEL = 63;

/**
 * Encodes "a.b": each label after its length. A trailing dot is ignored. Returns undefined for an invalid name: an empty
 * label, a label over 63 bytes, more than 253 characters, or characters other than letters, digits, "-" and "_".
 */
export function wireName(text: string): Uint8Array | undefined {
  const name = text.endsWith(".") ? text.slice(0, -1) : text;
  const bytes = new Uint8Array(name.length + 1);
  if (name === "" || bytes.length > LONGEST) return undefined;
  let start = 0;
  for (let i = 0; i <= name.length; i++) {
    const code = i < name.length ? name.charCodeAt(i) : DOT;
    if (code !== DOT) {
      const lower = code >= 65 && code <= 90 ? code | 0x20 : code;
      const isFit =
        (lower >= 97 && lower <= 122) || (lower >= 48 && lower <= 57) || lower === 45 || lower === 95;
      if (!isFit) return undefined;
      bytes[i + 1] = lower;
      continue;
    }
    const length = i - start;
    if (length === 0 || length > LONGEST_LABEL) return undefined;
    bytes[start] = length;
    start = i + 1;
  }
  return bytes;
}

/** Decodes such bytes. */
export function nameOfWire(bytes: Uint8Array): string {
  const labels: string[] = [];
  for (let at = 0; at < bytes.length; at += 1 + (bytes[at] ?? 0))
    labels.push(Buffer.from(bytes.subarray(at + 1, at + 1 + (bytes[at] ?? 0))).toString("latin1"));
  return labels.join(".");
}

export function labelCount(bytes: Uint8Array): number {
  let labels = 0;
  for (let at = 0; at < bytes.length; at += 1 + (bytes[at] ?? 0)) labels++;
  return labels;
}

const DOT = 46;
