/**
 * Updates the rows of live connections (bpf/flush.bpf.c). Nothing of it is pinned. Agents and commands can run it at the same
 * time.
 */

import * as layout from "../datapath/tables/layout.gen.ts";
import type { MapName, Maps } from "../datapath/tables/tables.ts";
import { monotonic } from "../kernel/clock.ts";
import { fetchAtomics } from "../kernel/features.ts";
import { SocketIterator } from "../kernel/iterator.ts";
import { BpfObject, type BpfProgram } from "../kernel/object.ts";
import { asset } from "../runtime/assets.ts";
import type { Counting } from "./counting.ts";

const { flushed_ns: FLUSHED, flush_ns: FLUSH } = layout.traffic.fields;
/** Shortest interval of walks over all TCP sockets, milliseconds. */
const WALK = 4_500;
/** Pause after a walk, in multiples of its duration, so that walks take at most a hundredth of a core. */
const REST = 100;

/** Owns programs and iterators. */
export class Flusher {
  readonly #held: { close(): void }[];
  readonly #connected: SocketIterator;
  readonly #accepted: SocketIterator;
  readonly #walk: SocketIterator;
  readonly #counting: Counting;
  #walkAt = Number.NEGATIVE_INFINITY;

  private constructor(counting: Counting, programs: BpfProgram[], iterators: SocketIterator[]) {
    const [connected, accepted, walk] = iterators;
    if (!connected || !accepted || !walk) throw new Error("an iterator is missing");
    this.#connected = connected;
    this.#accepted = accepted;
    this.#walk = walk;
    this.#counting = counting;
    this.#held = [...iterators, ...programs];
  }

  /**
   * Loads the programs over `maps`, which stay the caller's, as does `counting`. Gives undefined where the kernel can't do it
   * (before 5.12): connections are then counted as opened at their connect(), and their bytes at their end. Throws KernelError.
   */
  static open(maps: Maps, counting: Counting): Flusher | undefined {
    if (!fetchAtomics()) return undefined;
    using object = BpfObject.open(asset("flush.bpf.o"), "flush");
    for (const name of object.mapNames as MapName[]) object.useMap(name, maps[name]);
    object.load();
    const programs: BpfProgram[] = [];
    const iterators: SocketIterator[] = [];
    const program = (name: string) => {
      const loaded = object.program(name);
      programs.push(loaded);
      return loaded;
    };
    try {
      iterators.push(SocketIterator.overStorage(program("flush"), maps.sockets));
      iterators.push(SocketIterator.overStorage(program("flush_accepted"), maps.accepted));
      iterators.push(SocketIterator.overTcp(program("see_accepted")));
      return new Flusher(counting, programs, iterators);
    } catch (error) {
      for (const held of [...iterators, ...programs]) held.close();
      throw error;
    }
  }

  /**
   * Visits every governed socket and every accepted one that is known, about 0.2 us each; looks for more of those from time
   * to time, unless the programs at the hooks would not settle them (`isAttached`). Throws KernelError.
   */
  flush(isAttached = true): void {
    const { words, isServing } = this.#counting;
    Atomics.store(words, FLUSHED.offset >> 3, words[FLUSH.offset >> 3] ?? 0n);
    Atomics.store(words, FLUSH.offset >> 3, monotonic());
    this.#connected.run();
    this.#accepted.run();
    if (isAttached && isServing && performance.now() >= this.#walkAt) this.findAccepted();
  }

  /**
   * Looks at each TCP socket of this network namespace, or of the one at the path `netns`, for connections that were accepted
   * on served ports, and counts them as opened. Throws KernelError.
   */
  findAccepted(netns?: string): void {
    const began = performance.now();
    this.#counting.expectAccepted();
    this.#walk.run(netns);
    const ended = performance.now();
    this.#walkAt = Math.max(began + WALK, ended + (ended - began) * REST);
  }

  close(): void {
    for (const held of this.#held) held.close();
  }
}
