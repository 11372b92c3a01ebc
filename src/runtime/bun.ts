/**
 * Foreign functions by bun:ffi. Views are passed as views, never as a number from ptr(): Bun moves the memory of
 * small typed arrays at the first access to their `.buffer`, and a number would then be stale.
 */
import { CString, dlopen, type FFIFunction, FFIType, type Pointer, toArrayBuffer } from "bun:ffi";
import type { Ffi, Functions, NativeType, Signature } from "./native-types.ts";

const TYPES = {
  void: FFIType.void,
  i32: FFIType.i32,
  u32: FFIType.u32,
  i64: FFIType.i64,
  u64: FFIType.u64,
  buffer: FFIType.ptr,
} as const satisfies Record<NativeType, FFIType>;

export const bunFfi: Ffi = {
  open<const Table extends Record<string, Signature>>(path: string, table: Table): Functions<Table> {
    const symbols: Record<string, FFIFunction> = {};
    for (const [name, [result, ...parameters]] of Object.entries(table))
      symbols[name] = { returns: TYPES[result], args: parameters.map((parameter) => TYPES[parameter]) };
    return dlopen(path, symbols).symbols as unknown as Functions<Table>;
  },
  text: (address) => (address === 0n ? "" : new CString(Number(address) as Pointer).toString()),
  memory: (address, bytes) => toArrayBuffer(Number(address) as Pointer, 0, bytes),
};
