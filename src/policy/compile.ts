/**
 * Compiles policies into lookup tables for the kernel: classes of addresses that all policies treat alike, and for each
 * (port, class of sources, class of destinations) the refusing policy. The judge decides each cell, so there is one engine.
 */

import { isV4, type Prefix, prefixBits } from "../mesh/address.ts";
import { type Inbound, MTLS_MODES, type MtlsMode, mtlsOf } from "../mesh/inbound.ts";
import { type AddressSet, addressNumber } from "./address-set.ts";
import { type Judge, judgeOf, type Place, type Ruling } from "./decide.ts";

/** Most cells of all ports: 4 MB in the kernel. */
export const MOST_CELLS = 1 << 20;

/** Refusals without a policy; see enum inbound_refusal. */
export type Refuser = { policy: string } | "strict" | "too-large";

export interface CompiledPort {
  port: number;
  mode: MtlsMode;
  firstCell: number;
  bySource: boolean;
  byDestination: boolean;
}

/** A prefix (bits of 128, v4-mapped) and the class of the addresses for which it is the longest one. */
export interface Classified {
  prefix: Prefix;
  class: number;
}

export interface Cell {
  plaintext: Refuser | undefined;
  anybody: Refuser | undefined;
}

export interface Compiled {
  ports: CompiledPort[];
  /** Class 0 when nothing matches. */
  sources: Classified[];
  destinations: Classified[];
  sourceClasses: number;
  destinationClasses: number;
  cells: Cell[];
  /** Ports whose policies don't fit. All connections to them are refused. */
  tooLarge: number[];
}

const FREE: Cell = { plaintext: undefined, anybody: undefined };
const TOO_LARGE: Cell = { plaintext: "too-large", anybody: "too-large" };

/** Throws RangeError for an invalid prefix. */
export function compileInbound(inbound: Inbound, mostCells = MOST_CELLS): Compiled {
  const judge: Judge = judgeOf(inbound);
  const rulings = inbound.ports.map((port) => ({ port, ruling: judge.rulesOf(port) }));
  const sets = rulings.map(({ ruling }) => ruling.sets);
  const sources = classify(new Set(sets.flatMap(({ sources }) => [...sources])));
  const destinations = classify(new Set(sets.flatMap(({ destinations }) => [...destinations])));
  const compiled: Compiled = {
    ports: [],
    sources: sources.prefixes,
    destinations: destinations.prefixes,
    sourceClasses: sources.classes.length,
    destinationClasses: destinations.classes.length,
    cells: [],
    tooLarge: [],
  };
  /** First cells of equal tables, by their content. */
  const known = new Map<string, number>();
  /** Ports with equal decisions. */
  const alike = new Map<string, CompiledPort>();
  const tooLarge = new Set<string>();
  for (const [i, { port, ruling }] of rulings.entries()) {
    const mode = mtlsOf(inbound, port);
    const ruled = `${mode} ${ruling.keyOf(port)}`;
    const same = alike.get(ruled);
    if (same) {
      compiled.ports.push({ ...same, port });
      if (tooLarge.has(ruled)) compiled.tooLarge.push(port);
      continue;
    }
    const used = sets[i] ?? { sources: new Set(), destinations: new Set() };
    const bySource = used.sources.size > 0;
    const byDestination = used.destinations.size > 0;
    const from = bySource ? sources.classes : [NOWHERE];
    const to = byDestination ? destinations.classes : [NOWHERE];
    const entry: CompiledPort = { port, mode, firstCell: 0, bySource, byDestination };
    let cells: Cell[];
    if (compiled.cells.length + from.length * to.length > mostCells) {
      tooLarge.add(ruled);
      compiled.tooLarge.push(port);
      entry.bySource = false;
      entry.byDestination = false;
      cells = [TOO_LARGE];
    } else cells = cellsOf(ruling, port, mode, from, to, used);
    const key = cells.map(({ plaintext, anybody }) => `${textOf(plaintext)} ${textOf(anybody)}`).join("\n");
    const first = known.get(key) ?? compiled.cells.length;
    if (!known.has(key)) {
      known.set(key, first);
      for (const cell of cells) compiled.cells.push(cell);
    }
    entry.firstCell = first;
    compiled.ports.push(entry);
    alike.set(ruled, entry);
  }
  return compiled;
}

/** Looks a connection up in the tables like the kernel, for tests and `explain`. */
export function lookUp(
  compiled: Compiled,
  connection: { sourceAddress: string; destinationAddress: string; destinationPort: number },
): (Cell & { mode: MtlsMode }) | undefined {
  const port = compiled.ports.find((each) => each.port === connection.destinationPort);
  if (!port) return undefined;
  const row = port.bySource ? classOf(compiled.sources, connection.sourceAddress) : 0;
  const column = port.byDestination ? classOf(compiled.destinations, connection.destinationAddress) : 0;
  const width = port.byDestination ? compiled.destinationClasses : 1;
  return { ...(compiled.cells[port.firstCell + row * width + column] ?? TOO_LARGE), mode: port.mode };
}

function classOf(list: readonly Classified[], address: string): number {
  const number = addressNumber(address) ?? 0n;
  let best: Classified | undefined;
  let bits = -1;
  for (const each of list) {
    const own = prefixBits(each.prefix);
    const shift = BigInt(128 - own);
    if (own <= bits || (addressNumber(each.prefix.address) ?? 0n) >> shift !== number >> shift) continue;
    best = each;
    bits = own;
  }
  return best?.class ?? 0;
}

type Sets = ReadonlySet<AddressSet>;

function cellsOf(
  ruling: Ruling,
  port: number,
  mode: MtlsMode,
  from: readonly Sets[],
  to: readonly Sets[],
  used: { sources: Sets; destinations: Sets },
): Cell[] {
  const cells: Cell[] = [];
  /** By what this port's rules can tell of the classes. */
  const made = new Map<string, Cell>();
  const sources = numbered(used.sources, from);
  const destinations = numbered(used.destinations, to);
  for (const source of sources)
    for (const destination of destinations) {
      const key = `${source.key} ${destination.key}`;
      let cell = made.get(key);
      if (!cell) {
        cell = cellOf(ruling, port, mode, source.place, destination.place);
        made.set(key, cell);
      }
      cells.push(cell);
    }
  return cells;
}

function cellOf(ruling: Ruling, port: number, mode: MtlsMode, source: Place, destination: Place): Cell {
  const facts = { source, destination, port };
  const open = ruling.decide({ ...facts, peer: "none" });
  const closed = ruling.refusesAnybody({ ...facts, peer: "unknown" });
  const [, , strict] = MTLS_MODES;
  if (mode !== strict && open.allowed && !closed) return FREE;
  return {
    plaintext: mode === strict ? "strict" : open.allowed ? undefined : { policy: open.policy ?? "" },
    anybody: closed && { policy: closed.policy ?? "" },
  };
}

/** Each class as far as the sets in use tell it from others. */
function numbered(used: Sets, classes: readonly Sets[]): { key: string; place: Place }[] {
  const numbers = new Map([...used].map((set, i) => [set, i] as const));
  return classes.map((sets) => {
    const own: number[] = [];
    // Most classes are in few sets.
    for (const set of sets) {
      const number = numbers.get(set);
      if (number !== undefined) own.push(number);
    }
    return {
      key: own.sort((a, b) => a - b).join(),
      place: { isIn: (set: AddressSet) => (sets.has(set) ? "true" : "false") },
    };
  });
}

function textOf(refuser: Refuser | undefined): string {
  return typeof refuser === "object" ? refuser.policy : (refuser ?? "-");
}

/** Outside of all sets. */
const NOWHERE: Sets = new Set();

/**
 * The classes of addresses: two addresses are in one class if they lie in the same sets. Class 0 lies in none. The set of a
 * prefix's addresses, without those of longer prefixes, is that of all the prefixes around it.
 */
function classify(sets: Sets): { prefixes: Classified[]; classes: Sets[] } {
  interface Node {
    prefix: Prefix;
    number: bigint;
    bits: number;
    sets: Set<AddressSet>;
  }
  const nodes = new Map<string, Node>();
  const nodeOf = (prefix: Prefix): Node => {
    const key = `${prefix.address}/${prefix.length}`;
    const known = nodes.get(key);
    if (known) return known;
    const node = {
      prefix,
      number: addressNumber(prefix.address) ?? 0n,
      bits: prefixBits(prefix),
      sets: new Set<AddressSet>(),
    };
    nodes.set(key, node);
    return node;
  };
  for (const set of sets) for (const prefix of set.prefixes) nodeOf(prefix).sets.add(set);
  if (nodes.size === 0) return { prefixes: [], classes: [NOWHERE] };
  // Families never mix: ::/0 ends at the v4-mapped addresses.
  nodeOf({ address: "0.0.0.0", length: 0 });
  nodeOf({ address: "::", length: 0 });
  const order = [...nodes.values()].sort((a, b) => a.bits - b.bits);
  const lengths = [...new Set(order.map(({ bits }) => bits))].sort((a, b) => b - a);
  const placed = new Map<string, Node>();
  const numbers = new Map<AddressSet, number>([...sets].map((set, i) => [set, i]));
  const classes: Sets[] = [NOWHERE];
  const known = new Map<string, number>([["", 0]]);
  const prefixes: Classified[] = [];
  const keyOf = (number: bigint, bits: number, v4: boolean) =>
    `${v4} ${bits} ${number >> BigInt(128 - bits)}`;
  for (const node of order) {
    const v4 = isV4(node.prefix.address);
    for (const bits of lengths) {
      if (bits >= node.bits) continue;
      const around = placed.get(keyOf(node.number, bits, v4));
      if (!around) continue;
      for (const set of around.sets) node.sets.add(set);
      break;
    }
    placed.set(keyOf(node.number, node.bits, v4), node);
    const key = [...node.sets]
      .map((set) => numbers.get(set) ?? 0)
      .sort((a, b) => a - b)
      .join();
    const number = known.get(key) ?? classes.length;
    if (!known.has(key)) {
      known.set(key, number);
      classes.push(node.sets);
    }
    prefixes.push({ prefix: node.prefix, class: number });
  }
  return { prefixes, classes };
}
