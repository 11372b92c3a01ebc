/** What maps, programs and links have in common: a file descriptor that can be pinned. */
import { cString } from "../runtime/ffi.ts";
import { check } from "./error.ts";
import { native } from "./native.ts";

/** Owns its file descriptor; `close()` may be called twice. */
export abstract class Descriptor {
  #fd: number;

  protected constructor(fd: number) {
    this.#fd = fd;
  }

  /** What it is of, for messages: "the map sockets". */
  protected abstract get title(): string;

  /** Throws after `close()`. */
  get fd(): number {
    if (this.#fd < 0) throw new Error(`${this.title} is closed`);
    return this.#fd;
  }

  /** Throws KernelError: EEXIST when the path is taken, EINVAL when it has a dot or is not on a bpffs. */
  pin(path: string): void {
    check(native().bpf_obj_pin(this.fd, cString(path)), "bpf_obj_pin", path);
  }

  close(): void {
    if (this.#fd >= 0) native().kmesh_close(this.#fd);
    this.#fd = -1;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
