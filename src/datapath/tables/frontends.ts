/** The tables that lead from an address to a frontend id: the exact hash and the prefix trie. */

import { BpfMap, FLAG } from "../../kernel/maps.ts";
import { contains, isV4 } from "../../mesh/address.ts";
import { frontendKey } from "../../mesh/frontend.ts";
import type { Match } from "../../mesh/model.ts";
import { faultPoint } from "../../runtime/fault.ts";
import {
  EXACT_KEY_SIZE,
  exactKey,
  fingerprint,
  matchOfExactKey,
  matchOfPrefixKey,
  PREFIX_KEY_SIZE,
  prefixKey,
  putExactKey,
} from "./frontend-key.ts";
import { innerMap, installInnerMap, withRoomFor } from "./inner-map.ts";
import * as layout from "./layout.gen.ts";

const REF_SIZE = layout.frontend_ref.size;
const SMALLEST_HASH = 1024;
const LARGEST_TRIE = 1 << 20;

export interface PlacedFrontend {
  match: Match;
  id: number;
}

/** Frontends by exact address and port. Elements are added and removed, never replaced. */
export class ExactTable {
  readonly #outer: BpfMap;
  #hash: BpfMap;
  /** The number of elements; absent until it is needed. */
  #count: number | undefined;

  /** Opens the hash in `outer`, which stays the caller's. Creates an empty hash if there is none. */
  constructor(outer: BpfMap) {
    this.#outer = outer;
    this.#hash = innerMap(outer) ?? installInnerMap(outer, createHash(SMALLEST_HASH));
  }

  /** Drops cached knowledge of the hash. */
  reread(): void {
    this.#count = undefined;
  }

  list(): PlacedFrontend[] {
    const placed = list(this.#hash, EXACT_KEY_SIZE, matchOfExactKey);
    this.#count = placed.length;
    return placed;
  }

  /** The id of the frontend at exactly this address and port. */
  find(address: string, port: number): number | undefined {
    return find(this.#hash, exactKey(address, port));
  }

  get capacity(): number {
    return this.#hash.info.maxEntries;
  }

  /** Adds frontends. Their targets must be published. */
  add(frontends: readonly PlacedFrontend[]): void {
    if (frontends.length === 0) return;
    const count = this.#held() + frontends.length;
    this.#hash = withRoomFor(count, this.#outer, this.#hash, createHash, () => faultPoint("publish.growth"));
    const keys = new Uint8Array(new ArrayBuffer(frontends.length * EXACT_KEY_SIZE));
    const words = new Uint32Array(keys.buffer);
    const refs = new Uint32Array(new ArrayBuffer(frontends.length * REF_SIZE));
    frontends.forEach(({ match, id }, i) => {
      if (match.kind !== "address") throw new TypeError(`${textOf(match)} is no exact frontend`);
      putExactKey(keys, i * EXACT_KEY_SIZE, match.address, match.port);
      refs[i * 2] = id;
      refs[i * 2 + 1] = fingerprint(words, i);
    });
    this.#hash.updateBatch(keys, new Uint8Array(refs.buffer), frontends.length);
    this.#count = count;
  }

  remove(matches: readonly Match[]): void {
    for (const match of matches)
      if (this.#hash.delete(keyOf(match)) && this.#count !== undefined) this.#count--;
  }

  #held(): number {
    this.#count ??= this.#hash.entries().count;
    return this.#count;
  }

  close(): void {
    this.#hash.close();
  }
}

/**
 * Frontends by block and port, or by port alone. Entries are only added to a trie. A removal builds a new trie without the
 * entry, so that no node's memory is reused under a reader.
 */
export class PrefixTable {
  readonly #outer: BpfMap;
  readonly #name: string;
  #trie: BpfMap;
  #placed = new Map<string, PlacedFrontend>();

  constructor(outer: BpfMap, name: string) {
    this.#outer = outer;
    this.#name = name;
    const held = innerMap(outer);
    this.#trie = held ?? installInnerMap(outer, createTrie(name));
    this.reread();
  }

  /** Reads the trie's content again. */
  reread(): void {
    this.#placed = new Map(this.list().map((placed) => [textOf(placed.match), placed]));
  }

  list(): PlacedFrontend[] {
    return list(this.#trie, PREFIX_KEY_SIZE, matchOfPrefixKey);
  }

  /** The frontend of this port with the longest block that contains the address. */
  find(address: string, port: number): PlacedFrontend | undefined {
    const host = { address, length: isV4(address) ? 32 : 128 };
    const id = find(this.#trie, prefixKey(host, port));
    if (id === undefined) return undefined;
    const covering = [...this.#placed.values()].filter(({ match }) => covers(match, address, port));
    return covering.sort((a, b) => lengthOf(b.match) - lengthOf(a.match))[0];
  }

  get size(): number {
    return this.#placed.size;
  }

  add(frontends: readonly PlacedFrontend[]): void {
    for (const placed of frontends) this.#placed.set(textOf(placed.match), placed);
    fill(this.#trie, frontends);
  }

  remove(matches: readonly Match[]): void {
    const before = this.#placed.size;
    for (const match of matches) this.#placed.delete(textOf(match));
    if (this.#placed.size === before) return;
    const old = this.#trie;
    const left = [...this.#placed.values()];
    this.#trie = installInnerMap(this.#outer, createTrie(this.#name), (trie) => fill(trie, left));
    old.close();
  }

  close(): void {
    this.#trie.close();
  }
}

function find(map: BpfMap, key: Uint8Array): number | undefined {
  const ref = new Uint32Array(new ArrayBuffer(REF_SIZE));
  return map.lookup(key, new Uint8Array(ref.buffer)) ? ref[0] : undefined;
}

function covers(match: Match, address: string, port: number): boolean {
  if (match.port !== port || match.kind === "address") return false;
  return match.kind === "port" || contains(match, address);
}

function lengthOf(match: Match): number {
  return match.kind === "prefix" ? match.length : -1;
}

function textOf(match: Match): string {
  return frontendKey({ match, protocol: "tcp" });
}

function keyOf(match: Match): Uint8Array {
  if (match.kind === "address") return exactKey(match.address, match.port);
  return prefixKey(match.kind === "prefix" ? match : undefined, match.port);
}

function list(map: BpfMap, keySize: number, match: (key: Uint8Array) => Match): PlacedFrontend[] {
  const { keys, values, count } = map.entries();
  const refs = new Uint32Array(values.buffer, values.byteOffset, count * 2);
  return Array.from({ length: count }, (_, i) => ({
    match: match(keys.subarray(i * keySize, (i + 1) * keySize)),
    id: refs[i * 2] ?? 0,
  }));
}

function fill(trie: BpfMap, frontends: readonly PlacedFrontend[]): void {
  for (const { match, id } of frontends) {
    trie.update(keyOf(match), new Uint8Array(Uint32Array.of(id, 0).buffer));
  }
}

function createHash(maxEntries: number): BpfMap {
  return BpfMap.create({
    name: "frontends",
    type: "hash",
    keySize: EXACT_KEY_SIZE,
    valueSize: REF_SIZE,
    maxEntries,
    flags: FLAG.noPrealloc,
  });
}

function createTrie(name: string): BpfMap {
  return BpfMap.create({
    name,
    type: "lpm-trie",
    keySize: PREFIX_KEY_SIZE,
    valueSize: REF_SIZE,
    maxEntries: LARGEST_TRIE,
    flags: FLAG.noPrealloc,
  });
}
