/** Bytes of each part of a large JSON text. */
const PART = 64 << 10;

/**
 * Formats plain data as JSON: maps as objects, sets as lists, bytes as hexadecimal, 64-bit numbers as numbers where
 * they fit, else as strings.
 */
export function toJson(value: unknown, indent?: number): string {
  return JSON.stringify(value, (_key, each) => plain(each), indent) ?? "null";
}

/**
 * The same text as UTF-8 in parts of about 64 KB, made in one synchronous call: a large dump is never one string in
 * the heap, and it shows one moment.
 */
export function jsonParts(value: unknown): Uint8Array[] {
  const parts: Uint8Array[] = [];
  let text = "";
  const put = (piece: string) => {
    text += piece;
    if (text.length < PART) return;
    parts.push(Buffer.from(text));
    text = "";
  };
  spread(value, 2, put);
  parts.push(Buffer.from(text));
  return parts;
}

/** Writes the upper `levels` of `value` piece by piece, so that `put` gets one element at a time. */
function spread(value: unknown, levels: number, put: (piece: string) => void): void {
  if (levels === 0 || typeof value !== "object" || value === null || value instanceof Uint8Array) {
    put(toJson(value));
    return;
  }
  const isList = Array.isArray(value) || value instanceof Set;
  put(isList ? "[" : "{");
  let first = true;
  for (const [key, each] of isList
    ? [...value].entries()
    : value instanceof Map
      ? value
      : Object.entries(value)) {
    if (!isList && each === undefined) continue;
    put(`${first ? "" : ","}${isList ? "" : `${JSON.stringify(String(key))}:`}`);
    first = false;
    spread(each, levels - 1, put);
  }
  put(isList ? "]" : "}");
}

function plain(value: unknown): unknown {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (value instanceof Map) return Object.fromEntries(value);
  if (value instanceof Set) return [...value];
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  return value;
}
