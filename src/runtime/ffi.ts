/** The runtime's foreign functions. */
import type { Ffi } from "./native-types.ts";

export const ffi: Ffi =
  "Bun" in globalThis ? (await import("./bun.ts")).bunFfi : (await import("./deno.ts")).denoFfi;

/** A zero-terminated copy of a text, for a "buffer" argument. Throws TypeError when the text contains a zero. */
export function cString(text: string): Uint8Array {
  if (text.includes("\0")) throw new TypeError(`a text with a zero byte: ${JSON.stringify(text)}`);
  return new TextEncoder().encode(`${text}\0`);
}
