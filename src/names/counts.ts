/** Reads the counters of the names programs. */
import type { BpfMap } from "../kernel/maps.ts";
import * as layout from "./layout.gen.ts";
import type { NameCounts } from "./status.ts";

/** The events, in the kernel's order. */
export function countsOf(map: BpfMap): NameCounts {
  const counts: NameCounts = {};
  const key = new Uint32Array(new ArrayBuffer(4));
  const values = new BigUint64Array(new ArrayBuffer(map.valueBytes));
  for (const [name, number] of Object.entries(layout.enums.names_count)) {
    if (name === "NAMES_COUNT_END") continue;
    key[0] = number;
    map.lookup(new Uint8Array(key.buffer), new Uint8Array(values.buffer));
    counts[eventName(name)] = Number(values.reduce((sum, value) => sum + value, 0n));
  }
  return counts;
}

/** The event of a number from `names_explain`. */
export function eventOf(number: number): string {
  const found = Object.entries(layout.enums.names_count).find(([, value]) => value === number);
  return eventName(found?.[0] ?? "NAMES_UNKNOWN");
}

function eventName(name: string): string {
  return name.replace("NAMES_", "").toLowerCase().replaceAll("_", "-");
}
