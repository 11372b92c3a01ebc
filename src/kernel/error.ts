/** What the kernel refused: the call, on what, and why. */
import { constants } from "node:os";

/** Kernel-internal, and yet it comes out of bpf(2): the operation does not exist for this type of map. */
export const ENOTSUPP = 524;

export const ERRNO = constants.errno;

const CODES = new Map<number, string>([
  ...Object.entries(constants.errno).map(([code, number]): [number, string] => [number, code]),
  // Two names for one number: the one that the manual pages use.
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
  /** What it was done to: a path, a map's or a program's name. */
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

/**
 * The result of a native call that gives a negative errno on failure.
 * Throws KernelError with it.
 */
export function check(result: number, call: string, object: string): number {
  if (result < 0) throw new KernelError(call, -result, object);
  return result;
}
