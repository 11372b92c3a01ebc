/** Reads the kernel's refusals from the pinned tables, with or without an agent. */
import { existsSync } from "node:fs";
import { monotonic } from "../kernel/clock.ts";
import { BpfMap } from "../kernel/maps.ts";
import { formatAddress } from "../mesh/address.ts";
import { keptInboundPin, PolicySet } from "../policy/pinned.ts";
import * as layout from "./layout.gen.ts";

const REFUSALS = layout.enums.inbound_refusal;
const RECENT = layout.inbound_recent;

/** Refusers that are not policies. */
const NAMES: Readonly<Record<number, string>> = {
  [REFUSALS.REFUSED_STRICT]: "PeerAuthentication STRICT",
  [REFUSALS.REFUSED_TOO_LARGE]: "policies too large for the tables",
  [REFUSALS.REFUSED_OTHER]: "other policies",
  [REFUSALS.REFUSED_INTERNAL]: "internal: the tables contradict each other",
};

export interface Refusal {
  /** The name of the policy or of another refuser. */
  by: string;
  /** Refused connections since the tables were created. */
  count: number;
}

export interface RecentRefusal {
  /** Age, seconds. */
  ago: number;
  by: string;
  source: string;
  sourcePort: number;
  destination: string;
  port: number;
}

/** The refusers by descending count, and the last refusals, newest first. */
export interface Refusals {
  refusals: Refusal[];
  recent: RecentRefusal[];
}

/** Undefined when no inbound tables are pinned. Throws KernelError. */
export function readRefusals(bpffs: string): Refusals | undefined {
  if (!existsSync(keptInboundPin(bpffs, "inbound_refusals"))) return undefined;
  using counts = BpfMap.fromPin(keptInboundPin(bpffs, "inbound_refusals"));
  using recent = BpfMap.fromPin(keptInboundPin(bpffs, "inbound_recent"));
  const nameOf = refuserNames(bpffs);
  const list = numbered(recent, nameOf).map(({ number: _, ...rest }) => rest);
  return { refusals: countsOf(counts, nameOf), recent: list };
}

/** Gives refusals as they come. Owns its descriptors. */
export class RefusalFollower {
  readonly #bpffs: string;
  #maps: { recent: BpfMap; set: PolicySet } | undefined;
  /** The number of the last refusal that was given; undefined: those from now on. */
  #last: bigint | undefined;

  /** Opens nothing yet. */
  constructor(bpffs: string) {
    this.#bpffs = bpffs;
  }

  /**
   * The refusals since the last call, oldest first; none in the first call. `missed`: others between, which the kernel has
   * overwritten. Throws KernelError.
   */
  take(): { refusals: RecentRefusal[]; missed: number } {
    const maps = this.#open();
    if (!maps) {
      this.#last ??= 0n;
      return { refusals: [], missed: 0 };
    }
    const found = numbered(maps.recent, namesIn(maps.set)).reverse();
    const newest = found.at(-1)?.number ?? 0n;
    const last = this.#last ?? newest;
    const fresh = found.filter(({ number }) => number > last);
    this.#last = newest;
    return { refusals: fresh, missed: Number(newest - last) - fresh.length };
  }

  close(): void {
    this.#maps?.recent.close();
    this.#maps?.set.close();
    this.#maps = undefined;
  }

  #open(): { recent: BpfMap; set: PolicySet } | undefined {
    if (this.#maps || !existsSync(keptInboundPin(this.#bpffs, "inbound_recent"))) return this.#maps;
    const recent = BpfMap.fromPin(keptInboundPin(this.#bpffs, "inbound_recent"));
    try {
      const set = new PolicySet(BpfMap.fromPin(keptInboundPin(this.#bpffs, "inbound_text")));
      this.#maps = { recent, set };
    } catch (error) {
      recent.close();
      throw error;
    }
    return this.#maps;
  }
}

/** The counts alone, which a scrape asks for: policies are read only when one of them refused something. */
export function countRefusals(bpffs: string): Refusal[] {
  const pin = keptInboundPin(bpffs, "inbound_refusals");
  if (!existsSync(pin)) return [];
  using counts = BpfMap.fromPin(pin);
  return countsOf(counts, refuserNames(bpffs));
}

/** Gives the name of a refuser by its number; reads the policies when it is first asked for one. */
function refuserNames(bpffs: string): (number: number) => string {
  return lazyNames(() => {
    using set = new PolicySet(BpfMap.fromPin(keptInboundPin(bpffs, "inbound_text")));
    return set.read()?.numbers;
  });
}

/** The same by a set that is open. */
function namesIn(set: PolicySet): (number: number) => string {
  return lazyNames(() => set.read()?.numbers);
}

function lazyNames(read: () => ReadonlyMap<string, number> | undefined): (number: number) => string {
  let names: Map<number, string> | undefined;
  return (number) => {
    const fixed = NAMES[number];
    if (fixed !== undefined) return fixed;
    names ??= new Map([...(read() ?? [])].map(([name, id]) => [id, name]));
    return names.get(number) ?? `policy ${number}`;
  };
}

function countsOf(map: BpfMap, nameOf: (number: number) => string): Refusal[] {
  const { values, count } = map.entries();
  const words = new BigUint64Array(values.slice().buffer, 0, count);
  const refusals: Refusal[] = [];
  words.forEach((word, number) => {
    if (word > 0n) refusals.push({ by: nameOf(number), count: Number(word) });
  });
  return refusals.sort((a, b) => b.count - a.count);
}

/** Newest first. */
function numbered(map: BpfMap, nameOf: (number: number) => string): (RecentRefusal & { number: bigint })[] {
  const { values, count } = map.entries();
  const view = new DataView(values.buffer, values.byteOffset);
  const now = monotonic();
  const { number, at_ns, source, destination, source_port, port, refusal } = RECENT.fields;
  const found: (RecentRefusal & { number: bigint })[] = [];
  for (let i = 0; i < count; i++) {
    const at = i * RECENT.size;
    const own = view.getBigUint64(at + number.offset, true);
    if (own === 0n) continue;
    found.push({
      number: own,
      ago: Math.max(0, Number(now - view.getBigUint64(at + at_ns.offset, true)) / 1e9),
      by: nameOf(view.getUint32(at + refusal.offset, true)),
      source: formatAddress(values.subarray(at + source.offset, at + source.offset + 16)),
      sourcePort: view.getUint16(at + source_port.offset),
      destination: formatAddress(values.subarray(at + destination.offset, at + destination.offset + 16)),
      port: view.getUint16(at + port.offset, true),
    });
  }
  return found.sort((a, b) => (a.number < b.number ? 1 : -1));
}
