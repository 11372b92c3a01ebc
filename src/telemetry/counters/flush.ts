/**
 * Updates the rows of live connections (bpf/flush.bpf.c). Nothing of it is pinned. Agents and commands can run it at the same
 * time.
 */

import * as layout from "../../datapath/tables/layout.gen.ts";
import type { MapName, Maps } from "../../datapath/tables/tables.ts";
import { monotonic } from "../../kernel/clock.ts";
import { fetchAtomics } from "../../kernel/features.ts";
import { SocketIterator } from "../../kernel/iterator.ts";
import { BpfObject, type BpfProgram } from "../../kernel/object.ts";
import { asset } from "../../runtime/assets.ts";
import type { Counting } from "./counting.ts";

const { flushed_ns: FLUSHED, flush_ns: FLUSH } = layout.traffic.fields;
/** Shortest interval of walks over all TCP sockets, milliseconds. */
const WALK = 4_500;
/** Pause after a walk, in multiples of its duration, so that walks take at most a hundredth of a core. */
const REST = 100;
/** A push waits for a walk no longer than this, milliseconds. */
const SLICE = 4;

/** Owns programs and iterators. */
export class Flusher {
  readonly #held: { close(): void }[];
  readonly #connected: SocketIterator;
  readonly #accepted: SocketIterator;
  readonly #walk: SocketIterator;
  readonly #counting: Counting;
  #walkAt = Number.NEGATIVE_INFINITY;
  /** The walk that is under way, and the time that it has taken. */
  #pieces: Generator<undefined, void> | undefined;
  #walked = 0;
  #next: ReturnType<typeof setImmediate> | undefined;
  #failure: unknown;

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
   * Visits every governed socket and every known accepted one, about 0.2 us each. From time to time it looks for more accepted
   * ones, if the programs at the hooks count their ends (`isAttached`). With thousands of sockets that look goes on after this
   * call. Throws KernelError, also that of the last look.
   */
  flush(isAttached = true): void {
    const { words, isServing } = this.#counting;
    Atomics.store(words, FLUSHED.offset >> 3, words[FLUSH.offset >> 3] ?? 0n);
    Atomics.store(words, FLUSH.offset >> 3, monotonic());
    this.#connected.run();
    this.#accepted.run();
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure !== undefined) throw failure;
    if (!isAttached || !isServing || this.#pieces || performance.now() < this.#walkAt) return;
    this.#beginWalk();
    this.#walkOn();
  }

  /**
   * Looks at each TCP socket of this network namespace, or of the one at the path `netns`, for connections that were accepted
   * on served ports, and counts them as opened. Throws KernelError.
   */
  findAccepted(netns?: string): void {
    this.#beginWalk(netns);
    while (!this.#walkFor(Number.POSITIVE_INFINITY));
  }

  #beginWalk(netns?: string): void {
    this.#endWalk();
    this.#counting.expectAccepted();
    this.#walked = 0;
    this.#pieces = this.#walk.pieces(netns);
  }

  /** One slice now, and each further one after the work that waits then. */
  #walkOn(): void {
    if (this.#walkFor(SLICE)) return;
    this.#next = setImmediate(() => {
      try {
        this.#walkOn();
      } catch (error) {
        this.#failure = error;
      }
    });
  }

  /** Whether the walk has ended. */
  #walkFor(milliseconds: number): boolean {
    const began = performance.now();
    let now = began;
    let isOver = false;
    try {
      while (!isOver && now - began < milliseconds) {
        isOver = this.#pieces?.next().done ?? true;
        now = performance.now();
      }
    } catch (error) {
      this.#rest(began, now);
      throw error;
    }
    this.#walked += now - began;
    if (isOver) this.#rest(began, now);
    return isOver;
  }

  #rest(began: number, now: number): void {
    this.#pieces = undefined;
    this.#walkAt = Math.max(began + WALK, now + this.#walked * REST);
  }

  #endWalk(): void {
    if (this.#next) clearImmediate(this.#next);
    this.#pieces?.return();
    this.#pieces = undefined;
  }

  close(): void {
    this.#endWalk();
    for (const held of this.#held) held.close();
  }
}
