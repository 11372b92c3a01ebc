/** Iterator programs over all sockets with a value in a socket storage map, in all network namespaces. */
import { check } from "./error.ts";
import type { BpfMap } from "./maps.ts";
import { native } from "./native.ts";
import type { BpfProgram } from "./object.ts";

/** Owns its file descriptor; `close()` may be called twice. Only `run` visits sockets. */
export class StorageIterator {
  #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** `program` is an "iter/bpf_sk_storage_map" program; it and `map` stay the caller's. Throws KernelError. */
  static attach(program: BpfProgram, map: BpfMap): StorageIterator {
    const fd = native().kmesh_iterator_attach(program.fd, map.fd);
    return new StorageIterator(check(fd, "bpf_link_create", program.info.name));
  }

  /** Runs the program once for each socket; about 0.2 us per socket. Throws KernelError. */
  run(): void {
    if (this.#fd < 0) throw new Error("the iterator is closed");
    check(native().kmesh_iterator_run(this.#fd), "bpf_iter_create", "socket storage");
  }

  close(): void {
    if (this.#fd >= 0) native().kmesh_close(this.#fd);
    this.#fd = -1;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
