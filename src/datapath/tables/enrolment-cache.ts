/** What the programs remember of who is governed (`enrolment` and `verdicts` of bpf/include/keep.h). */

import { waitForGracePeriod } from "../../kernel/grace-period.ts";
import { type BpfMap, unmap } from "../../kernel/maps.ts";
import * as layout from "./layout.gen.ts";

/** Bits of the epoch that stand in a verdict. */
const EPOCH_BITS = 15n;

export class EnrolmentCache {
  readonly #enrolment: BigUint64Array;
  readonly #cache: BigUint64Array;

  constructor(enrolment: BpfMap, cache: BpfMap) {
    this.#enrolment = new BigUint64Array(enrolment.mmap());
    this.#cache = new BigUint64Array(cache.mmap());
  }

  /** Lets go of the memory: nobody may use this any more. */
  unmap(): void {
    unmap(this.#enrolment.buffer);
    unmap(this.#cache.buffer);
  }

  get root(): bigint {
    return this.#at("root");
  }

  /** The id of the cgroup that units are looked for below. Gives 1 when it was another. */
  setRoot(id: bigint): number {
    if (this.root === id) return 0;
    Atomics.store(this.#enrolment, layout.enrolment.fields.root.offset >> 3, id);
    return 1;
  }

  /**
   * Makes all of them void, once no program runs that read the maps as they were before: nothing is found by the old
   * ones and kept as if by the new. Takes a grace period, 6 to 32 ms.
   */
  forget(): void {
    waitForGracePeriod();
    const epoch = this.#at("epoch") + 1n;
    // Those of a whole round ago would count again.
    if (epoch % (1n << EPOCH_BITS) === 0n) this.#cache.fill(0n);
    Atomics.store(this.#enrolment, layout.enrolment.fields.epoch.offset >> 3, epoch);
  }

  #at(field: keyof typeof layout.enrolment.fields): bigint {
    return this.#enrolment[layout.enrolment.fields[field].offset >> 3] ?? 0n;
  }
}
