/** The switches of counting, in the maps `traffic` and `served_ports`. */

import * as layout from "../../datapath/tables/layout.gen.ts";
import { type BpfMap, unmap } from "../../kernel/maps.ts";

const FLAGS = layout.enums.traffic_flag;
type Field = keyof typeof layout.traffic.fields;

/** Owns a mapping of both maps. */
export class Counting {
  /** The record of the map `traffic`, live. */
  readonly words: BigUint64Array;
  readonly #served: BigUint64Array;

  /** The maps stay the caller's. Throws KernelError. */
  constructor(traffic: BpfMap, served: BpfMap) {
    this.words = new BigUint64Array(traffic.mmap());
    this.#served = new BigUint64Array(served.mmap());
  }

  get(field: Field): number {
    return Number(this.words[layout.traffic.fields[field].offset >> 3] ?? 0n);
  }

  set(field: Field, value: number): void {
    Atomics.store(this.words, layout.traffic.fields[field].offset >> 3, BigInt(value));
  }

  /** Whether new outbound connections are counted. */
  count(on: boolean): void {
    this.#flag(FLAGS.TRAFFIC_COUNT, on);
  }

  /** Whether each connection's end goes to the ring buffer. */
  log(on: boolean): void {
    this.#flag(FLAGS.TRAFFIC_LOG, on);
  }

  get isLogging(): boolean {
    return (this.get("flags") & FLAGS.TRAFFIC_LOG) !== 0;
  }

  /** Makes programs use the socket storage of see_accepted (bpf/flush.bpf.c). */
  expectAccepted(): void {
    this.#flag(FLAGS.TRAFFIC_ACCEPTED, true);
  }

  get isServing(): boolean {
    return (this.get("flags") & FLAGS.TRAFFIC_SERVED) !== 0;
  }

  /** Counts new connections that are accepted on these local ports only. */
  serve(ports: Iterable<number>): void {
    const words = new BigUint64Array(this.#served.length);
    let some = false;
    for (const port of ports) {
      const at = port >> 6;
      words[at] = (words[at] ?? 0n) | (1n << BigInt(port & 63));
      some = true;
    }
    words.forEach((word, i) => {
      if (this.#served[i] !== word) Atomics.store(this.#served, i, word);
    });
    this.#flag(FLAGS.TRAFFIC_SERVED, some);
  }

  /** Unmaps the memory. The object must not be used afterwards. */
  close(): void {
    unmap(this.words.buffer);
    unmap(this.#served.buffer);
  }

  #flag(flag: number, on: boolean): void {
    const before = this.get("flags");
    const after = on ? before | flag : before & ~flag;
    if (after !== before) this.set("flags", after);
  }
}
