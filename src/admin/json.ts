/** JSON text of plain data, maps as objects, sets as lists, 64-bit numbers as numbers where they fit, else as text. */
export function toJson(value: unknown, indent?: number): string {
  return JSON.stringify(value, (_key, each) => plain(each), indent) ?? "null";
}

function plain(value: unknown): unknown {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (value instanceof Map) return Object.fromEntries(value);
  if (value instanceof Set) return [...value];
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  return value;
}
