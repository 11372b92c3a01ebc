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
  return { refusals: countsOf(counts, nameOf), recent: recentOf(recent, nameOf) };
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
  let names: Map<number, string> | undefined;
  return (number) => {
    const fixed = NAMES[number];
    if (fixed !== undefined) return fixed;
    if (!names) {
      using set = new PolicySet(BpfMap.fromPin(keptInboundPin(bpffs, "inbound_text")));
      names = new Map([...(set.read()?.numbers ?? [])].map(([name, id]) => [id, name]));
    }
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

function recentOf(map: BpfMap, nameOf: (number: number) => string): RecentRefusal[] {
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
  found.sort((a, b) => (a.number < b.number ? 1 : -1));
  return found.map(({ number: _, ...rest }) => rest);
}
