/** The one inner map of an outer map with one slot: a table that grows by a larger copy, put in place by one update. */
import { BpfMap } from "../../kernel/maps.ts";

/** The key of the only slot. */
const SLOT = new Uint8Array(4);

/** The map in place; undefined when the slot is empty. The caller closes it. Throws KernelError. */
export function innerMap(outer: BpfMap): BpfMap | undefined {
  const id = new Uint32Array(new ArrayBuffer(4));
  return outer.lookup(SLOT, new Uint8Array(id.buffer)) ? BpfMap.fromId(id[0] ?? 0) : undefined;
}

/**
 * Puts a new map in place once `prepare` has filled it, and gives it back. Closes it when that fails. Throws KernelError.
 */
export function installInnerMap(
  outer: BpfMap,
  inner: BpfMap,
  prepare: (inner: BpfMap) => void = () => {},
): BpfMap {
  try {
    prepare(inner);
    outer.update(SLOT, new Uint8Array(Uint32Array.of(inner.fd).buffer));
  } catch (error) {
    inner.close();
    throw error;
  }
  return inner;
}

/** A hash is three quarters full at most: fuller, its buckets are long. */
const FULLEST = 0.75;

/**
 * A hash with room for `count` elements: `hash` itself, or where that is too small a larger copy, which takes its place at
 * once. `hash` is closed then. `create` makes an empty one; `copied` runs before the copy is put in place. Throws KernelError.
 */
export function withRoomFor(
  count: number,
  outer: BpfMap,
  hash: BpfMap,
  create: (maxEntries: number) => BpfMap,
  copied: () => void = () => {},
): BpfMap {
  let size = hash.info.maxEntries;
  if (count <= size * FULLEST) return hash;
  while (count > size * FULLEST) size *= 2;
  const { keys, values, count: held } = hash.entries();
  const larger = installInnerMap(outer, create(size), (copy) => {
    copy.updateBatch(keys, values, held);
    copied();
  });
  hash.close();
  return larger;
}
