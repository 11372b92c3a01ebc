/**
 * Finds an endpoint's id by its address and port: a hash table with open addressing over the kernel's own records, so
 * that a hundred thousand endpoints cost one word each instead of a map of keys.
 */
import { ENDPOINT_WORDS, type EndpointList } from "../../mesh/endpoint-list.ts";
import type { ChunkedTable } from "../tables/chunked-table.ts";
import * as layout from "../tables/layout.gen.ts";

const { address: ADDRESS, port: PORT } = layout.endpoint.fields;
/** The position of the port's two bytes in their 32-bit word. */
const PORT_WORD = PORT.offset & ~3;
const PORT_BYTE = PORT.offset & 3;

const EMPTY = 0;
const REMOVED = 0xffffffff;
const SMALLEST = 64;

/** A port in the form of its record's word, without the neighbouring bytes. */
const portBytes = new DataView(new ArrayBuffer(4));
const portWord = new Uint32Array(portBytes.buffer);
portBytes.setUint16(PORT_BYTE, 0xffff);
const PORT_MASK = portWord[0] ?? 0;

export class EndpointIndex {
  readonly #table: ChunkedTable;
  /** Id + 1, EMPTY or REMOVED. */
  #slots: Uint32Array;
  /** Slots that are not EMPTY. */
  #used = 0;
  #count = 0;

  /** `count`: the initial capacity. */
  constructor(table: ChunkedTable, room = 0) {
    this.#table = table;
    this.#slots = new Uint32Array(sizeFor(room * 2));
  }

  get size(): number {
    return this.#count;
  }

  find(list: EndpointList, index: number): number | undefined {
    const at = index * ENDPOINT_WORDS;
    const { words } = list;
    const port = wordOfPort(list.port(index));
    const mask = this.#slots.length - 1;
    let slot = hash(words[at] ?? 0, words[at + 1] ?? 0, words[at + 2] ?? 0, words[at + 3] ?? 0, port) & mask;
    for (; ; slot = (slot + 1) & mask) {
      const held = this.#slots[slot] ?? EMPTY;
      if (held === EMPTY) return undefined;
      if (held !== REMOVED && this.#holds(held - 1, words, at, port)) return held - 1;
    }
  }

  /** Adds a new id. Its record must be written. */
  add(id: number): void {
    if ((this.#used + 1) * 2 > this.#slots.length) this.#rebuild();
    this.#insert(id);
    this.#count++;
  }

  /** Removes an id. Its record must be unchanged. */
  remove(id: number): void {
    const mask = this.#slots.length - 1;
    for (let slot = this.#hashOf(id) & mask; this.#slots[slot] !== EMPTY; slot = (slot + 1) & mask) {
      if (this.#slots[slot] !== id + 1) continue;
      this.#slots[slot] = REMOVED;
      this.#count--;
      return;
    }
  }

  #insert(id: number): void {
    const mask = this.#slots.length - 1;
    let slot = this.#hashOf(id) & mask;
    while (this.#slots[slot] !== EMPTY) slot = (slot + 1) & mask;
    this.#slots[slot] = id + 1;
    this.#used++;
  }

  #rebuild(): void {
    const old = this.#slots;
    this.#slots = new Uint32Array(sizeFor((this.#count + 1) * 4));
    this.#used = 0;
    for (const held of old) if (held !== EMPTY && held !== REMOVED) this.#insert(held - 1);
  }

  #hashOf(id: number): number {
    const table = this.#table;
    return hash(
      table.word(id, ADDRESS.offset),
      table.word(id, ADDRESS.offset + 4),
      table.word(id, ADDRESS.offset + 8),
      table.word(id, ADDRESS.offset + 12),
      table.word(id, PORT_WORD) & PORT_MASK,
    );
  }

  #holds(id: number, words: Uint32Array, at: number, port: number): boolean {
    for (let i = 3; i >= 0; i--) {
      if (this.#table.word(id, ADDRESS.offset + i * 4) !== words[at + i]) return false;
    }
    return (this.#table.word(id, PORT_WORD) & PORT_MASK) === port;
  }
}

/** The smallest power of two that is at least `floor`. */
function sizeFor(floor: number): number {
  let size = SMALLEST;
  while (size < floor) size *= 2;
  return size;
}

function wordOfPort(port: number): number {
  portBytes.setUint16(PORT_BYTE, port);
  return (portWord[0] ?? 0) & PORT_MASK;
}

function hash(a: number, b: number, c: number, d: number, port: number): number {
  let mixed = Math.imul(a ^ Math.imul(b, 0x85ebca6b) ^ Math.imul(c, 0xc2b2ae35) ^ d, 0x9e3779b1);
  mixed = Math.imul(mixed ^ (mixed >>> 15) ^ port, 0x2c1b3c6d);
  return (mixed ^ (mixed >>> 13)) >>> 0;
}
