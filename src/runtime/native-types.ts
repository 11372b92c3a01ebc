/**
 * Foreign functions in the form that both runtimes support. Addresses are bigints, so that no pointer type of a
 * runtime reaches other modules.
 */

/**
 * Types of arguments and results. "u64" is also used for addresses. "buffer" is for arguments only: the address of
 * the view's memory, valid during the call, or NULL.
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

/** The callable functions of a table. */
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
  /** Foreign memory as a buffer, without a copy. It is never freed here, and must stay mapped. */
  memory(address: bigint, bytes: number): ArrayBuffer;
}
