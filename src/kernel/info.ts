import { check } from "./error.ts";
import { native } from "./native.ts";

/** The kernel's info struct of a map, program or link, at most `size` bytes of it. Throws KernelError. */
export function infoOf(fd: number, size: number, kind: string): ArrayBuffer {
  const bytes = new ArrayBuffer(size);
  const length = new Uint32Array(new ArrayBuffer(4));
  length[0] = size;
  const result = native().bpf_obj_get_info_by_fd(fd, new Uint8Array(bytes), length);
  check(result, "bpf_obj_get_info_by_fd", `${kind} fd ${fd}`);
  return bytes;
}

/** One for all: a start reads hundreds of names. */
const decoder = new TextDecoder();

/** A char[N] up to its first zero. */
export function fixedText(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return decoder.decode(end < 0 ? bytes : bytes.subarray(0, end));
}
