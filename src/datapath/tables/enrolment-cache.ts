/** The programs' cache of enrolment (`enrolment` and `verdicts` of bpf/maps/keep.h). */

import { waitForGracePeriod } from "../../kernel/grace-period.ts";
import { type BpfMap, unmap } from "../../kernel/maps.ts";
import * as layout from "./layout.gen.ts";

/** Bits of the epoch in a verdict. */
const EPOCH_BITS = 15n;

export class EnrolmentCache {
  readonly #enrolment: BigUint64Array;
  readonly #cache: BigUint64Array;

  constructor(enrolment: BpfMap, cache: BpfMap) {
    this.#enrolment = new BigUint64Array(enrolment.mmap());
    this.#cache = new BigUint64Array(cache.mmap());
  }

  /** Unmaps the memory. The object must not be used afterwards. */
  unmap(): void {
    unmap(this.#enrolment.buffer);
    unmap(this.#cache.buffer);
  }

  get root(): bigint {
    return this.#at("root");
  }

  /** Sets the id of the cgroup below which units are searched. Returns 1 if it changed. */
  setRoot(id: bigint): number {
    if (this.root === id) return 0;
    Atomics.store(this.#enrolment, layout.enrolment.fields.root.offset >> 3, id);
    return 1;
  }

  /**
   * Invalidates all cached verdicts, after a grace period (6 to 32 ms): a program that still reads the old maps can then not
   * store a verdict that counts as new.
   */
  forget(): void {
    waitForGracePeriod();
    const epoch = this.#at("epoch") + 1n;
    // The epoch wraps around, so very old verdicts would become valid again.
    if (epoch % (1n << EPOCH_BITS) === 0n) this.#cache.fill(0n);
    Atomics.store(this.#enrolment, layout.enrolment.fields.epoch.offset >> 3, epoch);
  }

  #at(field: keyof typeof layout.enrolment.fields): bigint {
    return this.#enrolment[layout.enrolment.fields[field].offset >> 3] ?? 0n;
  }
}
