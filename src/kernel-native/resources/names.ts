/**
 * NDS: istiod's name table, flattened to the addresses of each name. istiod sends the whole table when one name changes, so
 * a large one is read where its bytes differ from those before.
 */
import protobuf from "protobufjs/minimal.js";
import { canonicalAddress } from "../../mesh/address.ts";
import type { Note } from "../../mesh/model.ts";
import { NO_NOTES, type Notes, note, sortedNotes } from "./note.ts";
import { guarded, openMessage } from "./wire.ts";

interface KubernetesName {
  shortName: string;
  namespace: string;
}

export interface NamesRecord {
  /** Canonical addresses by fully qualified name, sorted. Names without an address are left out. */
  readonly addresses: ReadonlyMap<string, readonly string[]>;
  /** The names of an address, sorted. More than one when services share it. */
  readonly hosts: ReadonlyMap<string, string | readonly string[]>;
  /** What services of Kubernetes are called in it, by fully qualified name. */
  readonly kubernetes: ReadonlyMap<string, KubernetesName>;
  readonly notes: Notes;
  /** Another one for each table that was read. */
  readonly version: number;
  /** Present when only a part was read: `changed` are the names that may differ from the table of that version. */
  readonly since?: { version: number; changed: ReadonlySet<string> };
}

/** Stands for a table that istiod never sent. */
export const NO_NAMES: NamesRecord = {
  addresses: new Map(),
  hosts: new Map(),
  kubernetes: new Map(),
  notes: NO_NOTES,
  version: 0,
};

/** Flattens a NameTable entry by entry. Throws MalformedResource when the bytes are no such message. */
export function flattenNames(resource: string, bytes: Uint8Array): NamesRecord {
  return new NameTableReader().read(resource, bytes);
}

/** Smaller tables are read whole each time. */
const LARGE = 256;
/** A part that is more than this share of the table is no less work. */
const LARGEST_PART = 0.25;

let versions = 0;

/**
 * Reads one table after the other. Records share their maps: the one that `read` gave before is not to be used any more,
 * but for its version. Keeps the bytes of a large table.
 */
export class NameTableReader {
  #addresses = new Map<string, readonly string[]>();
  #hosts = new Map<string, string | readonly string[]>();
  #kubernetes = new Map<string, KubernetesName>();
  #version = 0;
  #bytes: Uint8Array = new Uint8Array();
  /** Where each entry of the bytes begins, and where the last one ends. Empty when the next table has to be read whole. */
  #starts = new Uint32Array();

  /** Throws MalformedResource when the bytes are no NameTable; the record before stays good then. */
  read(resource: string, bytes: Uint8Array): NamesRecord {
    return guarded(resource, () => this.#readPart(bytes) ?? this.#readWhole(bytes));
  }

  #readWhole(bytes: Uint8Array): NamesRecord {
    const addresses = new Map<string, readonly string[]>();
    const kubernetes = new Map<string, KubernetesName>();
    const notes: Note[] = [];
    const starts: number[] = [];
    let orderly = true;
    let last = "";
    for (const { host, ips, kubernetes: service, start } of entries(bytes, 0, bytes.length)) {
      starts.push(start);
      orderly &&= isCanonical(host) && (starts.length === 1 || last < host);
      last = host;
      const found = canonical(host, ips, notes);
      if (found.length > 0) addresses.set(host, found);
      if (service) kubernetes.set(host, service);
    }
    starts.push(bytes.length);
    this.#addresses = addresses;
    this.#hosts = new Map();
    for (const [host, list] of addresses) for (const address of list) this.#point(address, host);
    this.#kubernetes = kubernetes;
    const isReadByParts = orderly && notes.length === 0 && starts.length > LARGE && starts[0] === 0;
    this.#starts = isReadByParts ? Uint32Array.from(starts) : new Uint32Array();
    this.#bytes = isReadByParts ? own(bytes) : new Uint8Array();
    this.#version = ++versions;
    return this.#record(sortedNotes(notes));
  }

  /** Undefined when the table has to be read whole. */
  #readPart(bytes: Uint8Array): NamesRecord | undefined {
    const starts = this.#starts;
    const before = this.#bytes;
    if (starts.length === 0) return undefined;
    const prefix = commonPrefix(before, bytes);
    const suffix = commonSuffix(before, bytes, Math.min(before.length, bytes.length) - prefix);
    // The entries from `first` on and before `end` differ; in the new bytes they end at `newEnd`.
    const first = search(starts, (start) => start > prefix) - 1;
    const end = Math.max(
      first,
      search(starts, (start) => start >= before.length - suffix),
    );
    if (first < 0) return undefined;
    const from = starts[first] ?? 0;
    const to = starts[end] ?? before.length;
    const newEnd = bytes.length - (before.length - to);
    if (end - first > starts.length * LARGEST_PART) return undefined;
    if (newEnd - from > bytes.length * LARGEST_PART) return undefined;
    let gone: Entry[];
    let come: Entry[];
    let neighbours: Entry[];
    try {
      gone = [...entries(before, from, to)];
      come = [...entries(bytes, from, newEnd)];
      neighbours = [
        ...(first > 0 ? entries(before, starts[first - 1] ?? 0, from) : []),
        ...come,
        ...(end < starts.length - 1 ? entries(before, to, starts[end + 1] ?? to) : []),
      ];
    } catch {
      // What is wrong with it, and where, is found when it is read whole.
      return undefined;
    }
    const isOrderly = neighbours.every(
      ({ host }, i) => isCanonical(host) && (i === 0 || (neighbours[i - 1]?.host ?? "") < host),
    );
    const notes: Note[] = [];
    const found = come.map(({ host, ips }) => canonical(host, ips, notes));
    if (!isOrderly || notes.length > 0) return undefined;
    for (const { host } of gone) {
      for (const address of this.#addresses.get(host) ?? []) this.#unpoint(address, host);
      this.#addresses.delete(host);
      this.#kubernetes.delete(host);
    }
    come.forEach(({ host, kubernetes }, i) => {
      const list = found[i] ?? [];
      if (list.length > 0) this.#addresses.set(host, list);
      for (const address of list) this.#point(address, host);
      if (kubernetes) this.#kubernetes.set(host, kubernetes);
    });
    const all = new Uint32Array(first + come.length + starts.length - end);
    all.set(starts.subarray(0, first));
    come.forEach(({ start }, i) => {
      all[first + i] = start;
    });
    for (let i = end; i < starts.length; i++)
      all[first + come.length + i - end] = (starts[i] ?? 0) + newEnd - to;
    this.#starts = all;
    this.#bytes = own(bytes);
    const since = this.#version;
    this.#version = ++versions;
    const changed = new Set([...gone, ...come].map(({ host }) => host));
    return { ...this.#record(NO_NOTES), since: { version: since, changed } };
  }

  #record(notes: Notes): NamesRecord {
    return {
      addresses: this.#addresses,
      hosts: this.#hosts,
      kubernetes: this.#kubernetes,
      notes,
      version: this.#version,
    };
  }

  #point(address: string, host: string): void {
    const known = this.#hosts.get(address);
    if (known === undefined) this.#hosts.set(address, host);
    else this.#hosts.set(address, (typeof known === "string" ? [known, host] : [...known, host]).sort());
  }

  #unpoint(address: string, host: string): void {
    const known = this.#hosts.get(address) ?? [];
    const left = typeof known === "string" ? [] : known.filter((each) => each !== host);
    if (typeof known === "string" || left.length === 0) this.#hosts.delete(address);
    else this.#hosts.set(address, left.length === 1 ? (left[0] ?? "") : left);
  }
}

interface Entry {
  host: string;
  ips: string[];
  kubernetes: KubernetesName | undefined;
  /** Where its tag stands in the bytes. */
  start: number;
}

/** The entries of a part of a NameTable. Throws when the part does not end with one. */
function* entries(bytes: Uint8Array, from: number, to: number): Generator<Entry, void, void> {
  const reader = protobuf.Reader.create(bytes.subarray(from, to));
  while (reader.pos < reader.len) {
    const start = from + reader.pos;
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
    const isKubernetes = registry === "Kubernetes" && shortName !== "";
    yield { host, ips, kubernetes: isKubernetes ? { shortName, namespace } : undefined, start };
  }
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

/** Whether a name is written as the mesh has it, so that no other name of the table becomes the same one. */
function isCanonical(host: string): boolean {
  return host !== "" && !host.endsWith(".") && host === host.toLowerCase();
}

/** Bytes that stay: a small part of a large buffer would keep all of it. */
function own(bytes: Uint8Array): Uint8Array {
  return bytes.byteLength * 2 > bytes.buffer.byteLength ? bytes : bytes.slice();
}

/** How many bytes at the beginning are the same. Compares halves: as fast as memory is. */
function commonPrefix(one: Uint8Array, other: Uint8Array): number {
  let low = 0;
  let high = Math.min(one.length, other.length);
  while (low < high) {
    const middle = (low + high + 1) >>> 1;
    if (Buffer.compare(one.subarray(low, middle), other.subarray(low, middle)) === 0) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** How many bytes at the end are the same, `most` at most. */
function commonSuffix(one: Uint8Array, other: Uint8Array, most: number): number {
  let low = 0;
  let high = most;
  const tail = (bytes: Uint8Array, from: number, to: number) =>
    bytes.subarray(bytes.length - from, bytes.length - to);
  while (low < high) {
    const middle = (low + high + 1) >>> 1;
    if (Buffer.compare(tail(one, middle, low), tail(other, middle, low)) === 0) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The first index whose value fits, in an array where all behind it fit, too; its length when none does. */
function search(values: Uint32Array, fits: (value: number) => boolean): number {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (fits(values[middle] ?? 0)) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The names that have this address, sorted. */
export function hostsOf(names: NamesRecord, address: string): readonly string[] {
  const hosts = names.hosts.get(address);
  if (hosts === undefined) return [];
  return typeof hosts === "string" ? [hosts] : hosts;
}
