/** NDS: istiod's name table, flattened to the addresses of each name. */
import protobuf from "protobufjs/minimal.js";
import { canonicalAddress } from "../../mesh/address.ts";
import type { Note } from "../../mesh/model.ts";
import { NO_NOTES, type Notes, note, sortedNotes } from "./note.ts";
import { guarded, openMessage } from "./wire.ts";

export interface NamesRecord {
  /** Canonical addresses by fully qualified name, sorted. Names without an address are left out. */
  addresses: Map<string, readonly string[]>;
  /** The names of an address, sorted. More than one when services share it. */
  hosts: Map<string, string | readonly string[]>;
  /** What services of Kubernetes are called in it, by fully qualified name. */
  kubernetes: Map<string, { shortName: string; namespace: string }>;
  notes: Notes;
}

/** Stands for a table that istiod never sent. */
export const NO_NAMES: NamesRecord = {
  addresses: new Map(),
  hosts: new Map(),
  kubernetes: new Map(),
  notes: NO_NOTES,
};

/** Flattens a NameTable entry by entry. Throws MalformedResource when the bytes are no such message. */
export function flattenNames(resource: string, bytes: Uint8Array): NamesRecord {
  return guarded(resource, () => {
    const reader = protobuf.Reader.create(bytes);
    const addresses = new Map<string, readonly string[]>();
    const kubernetes: NamesRecord["kubernetes"] = new Map();
    const notes: Note[] = [];
    while (reader.pos < reader.len) {
      const tag = reader.uint32();
      // NameTable.table(1): {key 1, value 2: NameInfo{ips 1, registry 2, shortname 3, namespace 4}}
      if (tag !== 10) {
        reader.skipType(tag & 7);
        continue;
      }
      const end = openMessage(reader);
      let host = "";
      const ips: string[] = [];
      let registry = "";
      let shortName = "";
      let namespace = "";
      while (reader.pos < end) {
        const part = reader.uint32();
        if (part === 10) host = reader.string();
        else if (part !== 18) reader.skipType(part & 7);
        else {
          const infoEnd = openMessage(reader);
          while (reader.pos < infoEnd) {
            const field = reader.uint32();
            if (field === 10) ips.push(reader.string());
            else if (field === 18) registry = reader.string();
            else if (field === 26) shortName = reader.string();
            else if (field === 34) namespace = reader.string();
            else reader.skipType(field & 7);
          }
        }
      }
      const found = canonical(host, ips, notes);
      if (found.length > 0) addresses.set(host, found);
      if (registry === "Kubernetes" && shortName !== "") kubernetes.set(host, { shortName, namespace });
    }
    return { addresses, hosts: byAddress(addresses), kubernetes, notes: sortedNotes(notes) };
  });
}

function canonical(host: string, ips: string[], notes: Note[]): string[] {
  const found: string[] = [];
  for (const ip of ips) {
    const address = canonicalAddress(ip);
    if (address === undefined) {
      const text = `the table of names gives ${host} the address ${JSON.stringify(ip)}, which is none: left out`;
      notes.push(note("conflict", text));
    } else if (!found.includes(address)) found.push(address);
  }
  return found.length > 1 ? found.sort() : found;
}

function byAddress(addresses: NamesRecord["addresses"]): NamesRecord["hosts"] {
  const hosts = new Map<string, string | readonly string[]>();
  for (const [host, list] of addresses) {
    for (const address of list) {
      const known = hosts.get(address);
      if (known === undefined) hosts.set(address, host);
      else hosts.set(address, (typeof known === "string" ? [known, host] : [...known, host]).sort());
    }
  }
  return hosts;
}

/** The names that have this address, sorted. */
export function hostsOf(names: NamesRecord, address: string): readonly string[] {
  const hosts = names.hosts.get(address);
  if (hosts === undefined) return [];
  return typeof hosts === "string" ? [hosts] : hosts;
}
