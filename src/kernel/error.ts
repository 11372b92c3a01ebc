/** A failed system call or libbpf function: the call, its object, and the reason. */
import { constants } from "node:os";

/** Kernel-internal, but bpf(2) returns it: the map's type does not support the operation. */
export const ENOTSUPP = 524;

export const ERRNO = constants.errno;

const CODES = new Map<number, string>([
  ...Object.entries(constants.errno).map(([code, number]): [number, string] => [number, code]),
  // Numbers with two names: the manual pages use these.
  [constants.errno.EAGAIN, "EAGAIN"],
  [constants.errno.EOPNOTSUPP, "EOPNOTSUPP"],
  [ENOTSUPP, "ENOTSUPP"],
  // libbpf's own.
  [4000, "LIBBPF_LIBELF"],
  [4001, "LIBBPF_FORMAT"],
  [4003, "LIBBPF_ENDIAN"],
  [4004, "LIBBPF_INTERNAL"],
  [4005, "LIBBPF_RELOC"],
  [4006, "LIBBPF_LOAD"],
  [4007, "LIBBPF_VERIFY"],
  [4008, "LIBBPF_PROG2BIG"],
]);

export class KernelError extends Error {
  override readonly name = "KernelError";
  /** The system call or libbpf function. */
  readonly call: string;
  /** "ENOENT", or "E1234" when the number has no name here. */
  readonly code: string;
  readonly errno: number;
  /** The object of the call: a path, or the name of a map or program. */
  readonly object: string;

  /**
   * @param errno positive
   * @param detail what is known beyond the number: the end of libbpf's log, or the next step
   */
  constructor(call: string, errno: number, object: string, detail = "") {
    const code = CODES.get(errno) ?? `E${errno}`;
    super(`${call}(${object}): ${code}${detail === "" ? "" : `: ${detail}`}`);
    this.call = call;
    this.code = code;
    this.errno = errno;
    this.object = object;
  }
}

/** Gives the result of a native call. Throws KernelError when it is a negative errno. */
export function check(result: number, call: string, object: string): number {
  if (result < 0) throw new KernelError(call, -result, object);
  return result;
}
