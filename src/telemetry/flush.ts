/**
 * Brings the rows of live connections up to date (bpf/flush.bpf.c). Nothing of it is pinned: whoever has the maps can do
 * it, an agent or a command, any number at once.
 */

import * as layout from "../datapath/tables/layout.gen.ts";
import type { MapName, Maps } from "../datapath/tables/tables.ts";
import { monotonic } from "../kernel/clock.ts";
import { fetchAtomics } from "../kernel/features.ts";
import { StorageIterator } from "../kernel/iterator.ts";
import { BpfObject, type BpfProgram } from "../kernel/object.ts";
import { asset } from "../runtime/assets.ts";

const { flushed_ns: FLUSHED, flush_ns: FLUSH } = layout.traffic.fields;

export class Flusher {
  readonly #iterator: StorageIterator;
  readonly #program: BpfProgram;
  readonly #words: BigUint64Array;

  private constructor(iterator: StorageIterator, program: BpfProgram, words: BigUint64Array) {
    this.#iterator = iterator;
    this.#program = program;
    this.#words = words;
  }

  /**
   * Loads the program over `maps`, which stay the caller's. `words` is the mapped record of the map `traffic`. Gives
   * undefined where the kernel can't do it (before 5.12): connections are then counted as opened at their connect(), and
   * their bytes at their end. Throws KernelError.
   */
  static open(maps: Maps, words: BigUint64Array): Flusher | undefined {
    if (!fetchAtomics()) return undefined;
    using object = BpfObject.open(asset("flush.bpf.o"), "flush");
    for (const name of object.mapNames as MapName[]) if (maps[name]) object.useMap(name, maps[name]);
    object.load();
    const program = object.program("flush");
    try {
      return new Flusher(StorageIterator.attach(program, maps.sockets), program, words);
    } catch (error) {
      program.close();
      throw error;
    }
  }

  /** Visits every governed socket, about 0.2 us each. Throws KernelError. */
  flush(): void {
    Atomics.store(this.#words, FLUSHED.offset >> 3, this.#words[FLUSH.offset >> 3] ?? 0n);
    Atomics.store(this.#words, FLUSH.offset >> 3, monotonic());
    this.#iterator.run();
  }

  close(): void {
    this.#iterator.close();
    this.#program.close();
  }
}
