/** Reads ring buffer maps without waiting. The read position is part of the map: the next reader continues there. */
import { check } from "./error.ts";
import type { BpfMap } from "./maps.ts";
import { native } from "./native.ts";

/** Owns two mappings of the map. Only one reader may be active at a time. */
export class RingReader {
  readonly #recordSize: number;
  readonly #bytes: Uint8Array;
  #handle: bigint;

  private constructor(handle: bigint, recordSize: number, atOnce: number) {
    this.#handle = handle;
    this.#recordSize = recordSize;
    this.#bytes = new Uint8Array(new ArrayBuffer(recordSize * atOnce));
  }

  /** `map` is a "ringbuf" and stays the caller's; all its records have `recordSize` bytes. Throws KernelError. */
  static open(map: BpfMap, recordSize: number, atOnce = 512): RingReader {
    const handle = new BigUint64Array(new ArrayBuffer(8));
    const result = native().kmesh_ring_open(map.fd, map.info.maxEntries, handle);
    check(result, "mmap", map.info.name);
    return new RingReader(handle[0] ?? 0n, recordSize, atOnce);
  }

  /** The next records, packed in a buffer that the next call overwrites. */
  read(): { bytes: Uint8Array; count: number } {
    if (this.#handle === 0n) throw new Error("the ring buffer is closed");
    const count = native().kmesh_ring_read(this.#handle, this.#bytes, this.#bytes.length, this.#recordSize);
    return { bytes: this.#bytes, count };
  }

  close(): void {
    if (this.#handle !== 0n) native().kmesh_ring_close(this.#handle);
    this.#handle = 0n;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
