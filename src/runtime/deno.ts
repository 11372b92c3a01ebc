/** Foreign functions by Deno.dlopen (needs --allow-ffi). */
import type { Ffi, Functions, NativeType, Signature } from "./native-types.ts";

/** The part of Deno's types that is used. Deno's own declarations would conflict with Bun's. */
interface DenoFfi {
  dlopen(
    path: string,
    symbols: Record<string, { result: NativeType; parameters: readonly NativeType[] }>,
  ): { symbols: unknown };
  UnsafePointer: { create(address: bigint): object | null };
  UnsafePointerView: {
    getCString(pointer: object): string;
    getArrayBuffer(pointer: object, bytes: number): ArrayBuffer;
  };
}

function pointer(deno: DenoFfi, address: bigint): object {
  const result = deno.UnsafePointer.create(address);
  if (result === null) throw new TypeError("the address is 0");
  return result;
}

function api(): DenoFfi {
  const deno = (globalThis as unknown as { Deno?: DenoFfi }).Deno;
  if (deno === undefined) throw new Error("kmesh runs under Bun or Deno only");
  return deno;
}

export const denoFfi: Ffi = {
  open<const Table extends Record<string, Signature>>(path: string, table: Table): Functions<Table> {
    const symbols: Record<string, { result: NativeType; parameters: readonly NativeType[] }> = {};
    for (const [name, [result, ...parameters]] of Object.entries(table))
      symbols[name] = { result, parameters };
    return api().dlopen(path, symbols).symbols as Functions<Table>;
  },
  text: (address) => (address === 0n ? "" : api().UnsafePointerView.getCString(pointer(api(), address))),
  memory: (address, bytes) => api().UnsafePointerView.getArrayBuffer(pointer(api(), address), bytes),
};
