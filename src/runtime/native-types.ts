/**
 * Foreign functions as both runtimes offer them, the one thing in which Bun and Deno really differ. Addresses are
 * bigints, so that no opaque pointer type of either leaks upwards.
 */

/**
 * What a native function takes or gives. "u64" is also every address; "buffer" is only taken: the address of the
 * view's memory, for the length of the call, or NULL.
 */
export type NativeType = "void" | "i32" | "u32" | "i64" | "u64" | "buffer";

/** The result's type, then the arguments'. */
export type Signature = readonly [result: NativeType, ...parameters: NativeType[]];

interface ValueOf {
  void: undefined;
  i32: number;
  u32: number;
  i64: bigint;
  u64: bigint;
  buffer: ArrayBufferView | null;
}

/** The functions of a table, as they are called. */
export type Functions<Table extends Record<string, Signature>> = {
  readonly [Name in keyof Table]: Table[Name] extends readonly [
    infer Result extends NativeType,
    ...infer Parameters extends NativeType[],
  ]
    ? (...values: { [Index in keyof Parameters]: ValueOf[Parameters[Index] & NativeType] }) => ValueOf[Result]
    : never;
};

export interface Ffi {
  /**
   * Loads a shared library for the life of the process. A function that it lacks makes the whole call throw.
   * @param path as dlopen(3) takes it
   */
  open<const Table extends Record<string, Signature>>(path: string, table: Table): Functions<Table>;
  /** The zero-terminated UTF-8 text at an address; "" for address 0. */
  text(address: bigint): string;
  /** Foreign memory as a buffer, without a copy. It stays foreign: it is never freed, and must stay mapped. */
  memory(address: bigint, bytes: number): ArrayBuffer;
}
