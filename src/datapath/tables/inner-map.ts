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
