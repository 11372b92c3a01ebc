/** Counts refusals beside the kernel, in its own counters: the tunnel decides about peers with an identity. */
import { existsSync, statSync } from "node:fs";
import { BpfMap, unmap } from "../kernel/maps.ts";
import { atomicAdd } from "../kernel/net/sockets.ts";
import { keptInboundPin } from "./pinned.ts";

const COUNTER = 8;

export class RefusalCounter {
  readonly #pin: string;
  #bytes: Uint8Array<ArrayBuffer> | undefined;
  #inode = 0;

  /** Opens nothing yet. Call `close` at the end. */
  constructor(bpffs: string) {
    this.#pin = keptInboundPin(bpffs, "inbound_refusals");
  }

  /** Adds one to the counter of a policy's number. Nothing is counted without tables. Throws KernelError. */
  add(number: number): void {
    const bytes = this.#open();
    const at = number * COUNTER;
    if (bytes && at + COUNTER <= bytes.length) atomicAdd(bytes.subarray(at, at + COUNTER), 1n);
  }

  close(): void {
    if (this.#bytes) unmap(this.#bytes.buffer);
    this.#bytes = undefined;
  }

  /** Opened anew when another map is pinned there: somebody removed the tables. */
  #open(): Uint8Array | undefined {
    if (!existsSync(this.#pin)) return undefined;
    const inode = statSync(this.#pin).ino;
    if (this.#bytes && inode === this.#inode) return this.#bytes;
    this.close();
    using map = BpfMap.fromPin(this.#pin);
    this.#bytes = new Uint8Array(map.mmap());
    this.#inode = inode;
    return this.#bytes;
  }
}
