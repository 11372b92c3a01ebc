/** The one record that every connect() reads first (struct settings of bpf/maps/tables.h). */
import { type BpfMap, unmap } from "../../kernel/maps.ts";
import { parseAddress } from "../../mesh/address.ts";
import * as layout from "./layout.gen.ts";

type Field = keyof typeof layout.settings.fields;

const FLAGS = layout.enums.settings_flag;

export interface SettingsFlags {
  shadow: boolean;
  everyNetns: boolean;
  everyCgroup: boolean;
  prefixes: boolean;
  exclusions: boolean;
  /** Endpoints are reached through the tunnel, so direct connections to its port are refused. */
  tunnel: boolean;
}

const BITS: Record<keyof SettingsFlags, number> = {
  shadow: FLAGS.SETTING_SHADOW,
  everyNetns: FLAGS.SETTING_EVERY_NETNS,
  everyCgroup: FLAGS.SETTING_EVERY_CGROUP,
  prefixes: FLAGS.SETTING_PREFIXES,
  exclusions: FLAGS.SETTING_EXCLUSIONS,
  tunnel: FLAGS.SETTING_TUNNEL,
};

/** In `netns`: the kernel (before 5.14) does not tell which network namespace this is; as in tables.h. */
export const NETNS_UNKNOWN = 0xffff_ffff_ffff_ffffn;

/** Time after the last sync with istiod when the tables count as stale, as in eject.h. */
export const STALE_NS = 10_000_000_000n;

export class Settings {
  readonly #words: BigUint64Array;

  constructor(map: BpfMap) {
    this.#words = new BigUint64Array(map.mmap());
  }

  /** Unmaps the memory. The object must not be used afterwards. */
  unmap(): void {
    unmap(this.#words.buffer);
  }

  get(field: Field, index = 0): bigint {
    return this.#words[(layout.settings.fields[field].offset >> 3) + index] ?? 0n;
  }

  /** Publishes one member. Returns 1 if it changed, otherwise 0. */
  set(field: Field, value: bigint, index = 0): number {
    if (this.get(field, index) === value) return 0;
    Atomics.store(this.#words, (layout.settings.fields[field].offset >> 3) + index, value);
    return 1;
  }

  /** Whether the tables are stale; `now` by CLOCK_MONOTONIC. */
  isStale(now: bigint): boolean {
    return this.get("current_ns") + STALE_NS < now;
  }

  get flags(): SettingsFlags {
    const word = Number(this.get("flags"));
    const has = (flag: keyof SettingsFlags) => (word & BITS[flag]) !== 0;
    return {
      shadow: has("shadow"),
      everyNetns: has("everyNetns"),
      everyCgroup: has("everyCgroup"),
      prefixes: has("prefixes"),
      exclusions: has("exclusions"),
      tunnel: has("tunnel"),
    };
  }

  setFlags(change: Partial<SettingsFlags>): number {
    const flags = { ...this.flags, ...change };
    let word = 0;
    for (const flag of Object.keys(BITS) as (keyof SettingsFlags)[]) if (flags[flag]) word |= BITS[flag];
    return this.set("flags", BigInt(word));
  }

  /** The source addresses for source hashing when a socket has no address yet: the node's first of each family. */
  setNodeAddresses(addresses: readonly string[]): number {
    const bytes = addresses.map(parseAddress).filter((address) => address !== undefined);
    const v4 = bytes.find((address) => address[10] === 0xff && address[11] === 0xff && address[0] === 0);
    const v6 = bytes.find((address) => address !== v4 && !(address[0] === 0 && address[10] === 0xff));
    // Without an IPv6 address use the IPv4 one, so that nodes do not all hash to the same endpoint.
    const six = v6 ?? v4;
    const longs = six ? new BigUint64Array(six.slice().buffer) : new BigUint64Array(2);
    const low = v4 ? new Uint32Array(v4.slice(12).buffer)[0] : 0;
    return (
      this.set("node_v4", BigInt(low ?? 0)) +
      this.set("node_v6", longs[0] ?? 0n, 0) +
      this.set("node_v6", longs[1] ?? 0n, 1)
    );
  }
}
