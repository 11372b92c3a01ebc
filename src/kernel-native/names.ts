/** NDS: istiod's table of names, flattened to the addresses of each name. */
import { canonicalAddress } from "../mesh/address.ts";
import { istio } from "./envoy.gen.js";
import { NO_NOTES, type Notes, note, sortedNotes } from "./note.ts";
import { decode } from "./wire.ts";

export interface NamesRecord {
  /** Canonical addresses by fully qualified name, sorted; names without any are left out. */
  addresses: Map<string, readonly string[]>;
  /** The names of an address, sorted. More than one when services share it. */
  hosts: Map<string, string | readonly string[]>;
  notes: Notes;
}

export const NO_NAMES: NamesRecord = { addresses: new Map(), hosts: new Map(), notes: NO_NOTES };

/** Flattens the table. Throws MalformedResource when the bytes are none. */
export function flattenNames(resource: string, bytes: Uint8Array): NamesRecord {
  const { table } = decode(istio.NameTable, resource, bytes);
  const addresses = new Map<string, readonly string[]>();
  const hosts = new Map<string, string | readonly string[]>();
  const bad: string[] = [];
  for (const host of Object.keys(table).sort()) {
    const ips = table[host]?.ips ?? [];
    if (ips.length === 0) continue;
    const found = new Set<string>();
    for (const ip of ips) {
      const address = canonicalAddress(ip);
      if (address === undefined) {
        bad.push(
          `the table of names gives ${host} the address ${JSON.stringify(ip)}, which is none: left out`,
        );
        continue;
      }
      found.add(address);
    }
    if (found.size === 0) continue;
    addresses.set(host, [...found].sort());
    for (const address of found) {
      const known = hosts.get(address);
      if (known === undefined) hosts.set(address, host);
      else hosts.set(address, typeof known === "string" ? [known, host] : [...known, host]);
    }
  }
  return { addresses, hosts, notes: sortedNotes(bad.map((text) => note("conflict", text))) };
}

/** The names that have this address, sorted. */
export function hostsOf(names: NamesRecord, address: string): readonly string[] {
  const hosts = names.hosts.get(address);
  if (hosts === undefined) return [];
  return typeof hosts === "string" ? [hosts] : hosts;
}
