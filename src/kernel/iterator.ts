/**
 * Iterator programs over sockets: those with a value in a socket storage map, in all network namespaces, or all TCP sockets of
 * one namespace.
 */
import { closeSync, openSync } from "node:fs";
import { check } from "./error.ts";
import type { BpfMap } from "./maps.ts";
import { native } from "./native.ts";
import type { BpfProgram } from "./object.ts";

/** Owns its file descriptor; `close()` may be called twice. Only `run` visits sockets. */
export class SocketIterator {
  #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** `program` is an "iter/bpf_sk_storage_map" program; it and `map` stay the caller's. Throws KernelError. */
  static overStorage(program: BpfProgram, map: BpfMap): SocketIterator {
    const fd = native().kmesh_iterator_attach(program.fd, map.fd);
    return new SocketIterator(check(fd, "bpf_link_create", program.info.name));
  }

  /** `program` is an "iter/tcp" program; it stays the caller's. Throws KernelError. */
  static overTcp(program: BpfProgram): SocketIterator {
    const fd = native().kmesh_iterator_attach(program.fd, -1);
    return new SocketIterator(check(fd, "bpf_link_create", program.info.name));
  }

  /**
   * Runs the program once for each socket; about 0.2 us per socket. TCP sockets are those of the calling thread's network
   * namespace, or of the one at the path `netns`. Throws KernelError.
   */
  run(netns?: string): void {
    const pieces = this.pieces(netns);
    while (!pieces.next().done);
  }

  /**
   * The same in pieces, for a loop that has other work: each `next` visits on until the program writes a byte. Sockets that
   * come or go meanwhile may be visited or not. Throws KernelError.
   */
  *pieces(netns?: string): Generator<undefined, void> {
    if (this.#fd < 0) throw new Error("the iterator is closed");
    const at = netns === undefined ? -1 : openSync(netns, "r");
    let visit: number;
    try {
      visit = check(native().kmesh_iterator_begin(this.#fd, at), "bpf_iter_create", "sockets");
    } finally {
      if (at >= 0) closeSync(at);
    }
    try {
      while (check(native().kmesh_iterator_go_on(visit), "read", "sockets") > 0) yield;
    } finally {
      native().kmesh_close(visit);
    }
  }

  close(): void {
    if (this.#fd >= 0) native().kmesh_close(this.#fd);
    this.#fd = -1;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
