/** The kernel's tables of inbound policies. A new set is written beside the live one, then one store switches to it. */

import { installInnerMap } from "../datapath/tables/inner-map.ts";
import { waitForGracePeriod } from "../kernel/grace-period.ts";
import { BpfMap, FLAG, placeInner, unmap } from "../kernel/maps.ts";
import { parseAddress, prefixBits } from "../mesh/address.ts";
import type { Inbound } from "../mesh/inbound.ts";
import { inboundText } from "../mesh/inbound-text.ts";
import {
  type Cell,
  type Classified,
  type Compiled,
  compileInbound,
  type Refuser,
} from "../policy/compile.ts";
import { encodeSet, type PinnedSet, PolicySet } from "../policy/pinned.ts";
import * as layout from "./layout.gen.ts";
import type { InboundMaps } from "./pins.ts";

const { inbound_flags: FLAGS, inbound_mode: MODES, inbound_port_flags: PORT_FLAGS } = layout.enums;
const REFUSALS = layout.enums.inbound_refusal;
const PORT = layout.inbound_port;
const CELL = layout.inbound_cell;
const PREFIX = layout.inbound_prefix;
const NUMBERS = layout.maps.inbound_refusals.maxEntries;

const MODE_NUMBER = {
  disable: MODES.MODE_DISABLE,
  permissive: MODES.MODE_PERMISSIVE,
  strict: MODES.MODE_STRICT,
} as const;

/** Longest time that a program may still read the previous set after a switch, milliseconds. */
const SETTLED = 1000;

export interface InboundReport {
  /** Whether the set differs from the previous one. */
  changed: boolean;
  /** Elements written. */
  writes: number;
  /** Ports whose policies don't fit into the tables. */
  tooLarge: number[];
}

export class InboundTables {
  readonly #maps: InboundMaps;
  readonly #settings: BigUint64Array<ArrayBuffer>;
  readonly #set: PolicySet;
  /** The text of the live set, if known. */
  #text: string | undefined;
  #numbers = new Map<string, number>();
  /** Undefined: not known for an adopted set. */
  #tooLarge: number[] | undefined;
  #enforcesEstablished = false;
  #switchedAt = Number.NEGATIVE_INFINITY;

  /** `maps` stay the caller's. Reads the live set. Throws KernelError. */
  constructor(maps: InboundMaps) {
    this.#maps = maps;
    this.#settings = new BigUint64Array(maps.inbound_settings.mmap());
    this.#set = new PolicySet(BpfMap.fromId(maps.inbound_text.info.id));
    try {
      const pinned = this.#set.read();
      this.#numbers = new Map(pinned?.numbers);
      // The writer of the set was killed before it switched, or has another layout: write it again.
      if (pinned && this.isOn && (pinned.slot ?? this.#slot) === this.#slot) {
        this.#text = inboundText(pinned.inbound);
        this.#enforcesEstablished = pinned.enforcesEstablished ?? false;
      }
    } catch {
      // The set is unreadable. The first new set replaces it.
    }
  }

  get isOn(): boolean {
    return ((this.#settings[0] ?? 0n) & BigInt(FLAGS.INBOUND_ON)) !== 0n;
  }

  /** Ports whose policies don't fit. */
  get tooLarge(): number[] {
    if (this.#tooLarge === undefined && this.#text !== undefined) {
      const found = this.#set.read();
      this.#tooLarge = found ? compileInbound(found.inbound).tooLarge : [];
    }
    return this.#tooLarge ?? [];
  }

  /** The live slot. */
  get #slot(): number {
    return ((this.#settings[0] ?? 0n) & BigInt(FLAGS.INBOUND_SLOT)) === 0n ? 0 : 1;
  }

  /**
   * Makes the set govern, established connections too if `enforcesEstablished`. What is equal writes nothing. Throws KernelError, or RangeError for a prefix that is no block of
   * addresses; then the set before goes on.
   */
  publish(inbound: Inbound, enforcesEstablished = false): InboundReport {
    const text = inboundText(inbound);
    const same = text === this.#text && this.isOn;
    if (same && enforcesEstablished === this.#enforcesEstablished)
      return { changed: false, writes: 0, tooLarge: this.tooLarge };
    if (same) {
      this.#write({ inbound, numbers: this.#numbers, slot: this.#slot, enforcesEstablished });
      return { changed: true, writes: 1, tooLarge: this.tooLarge };
    }
    const compiled = compileInbound(inbound);
    this.#number(inbound);
    const slot = this.#slot === 0 || !this.isOn ? 1 : 0;
    if (performance.now() - this.#switchedAt < SETTLED) waitForGracePeriod();
    const made = this.#make(compiled);
    try {
      placeInner(made.map(({ outer, inner }) => ({ outer, key: slot, inner })));
    } finally {
      for (const { inner } of made) inner.close();
    }
    this.#write({ inbound, numbers: this.#numbers, slot, enforcesEstablished });
    const word = BigInt(FLAGS.INBOUND_ON | (slot === 1 ? FLAGS.INBOUND_SLOT : 0));
    Atomics.store(this.#settings, 0, word);
    this.#switchedAt = performance.now();
    this.#text = text;
    this.#tooLarge = compiled.tooLarge;
    const writes =
      compiled.ports.length + compiled.cells.length + compiled.sources.length + compiled.destinations.length;
    return { changed: true, writes, tooLarge: compiled.tooLarge };
  }

  /** Sets the machine's addresses (canonical), whose connections are exempt. Throws KernelError. */
  exempt(addresses: readonly string[]): void {
    const map = this.#maps.inbound_local;
    const wanted = new Map(
      addresses.flatMap((address) => {
        const bytes = parseAddress(address);
        return bytes ? [[Buffer.from(bytes).toString("hex"), bytes] as const] : [];
      }),
    );
    const { keys, count } = map.entries();
    let size = count;
    for (let i = 0; i < count; i++) {
      const key = keys.slice(i * 16, i * 16 + 16);
      if (wanted.delete(Buffer.from(key).toString("hex"))) continue;
      map.delete(key);
      size--;
    }
    const one = new Uint8Array(Uint32Array.of(1).buffer);
    for (const key of wanted.values()) if (size++ < map.info.maxEntries) map.update(key, one);
  }

  /** Turns refusing and steering off. The set stays. */
  turnOff(): void {
    const word = (this.#settings[0] ?? 0n) & ~BigInt(FLAGS.INBOUND_ON);
    if (word !== this.#settings[0]) Atomics.store(this.#settings, 0, word);
    this.#text = undefined;
  }

  close(): void {
    this.#set.close();
    unmap(this.#settings.buffer);
  }

  /** Gives each policy its previous number or a new one. Numbers are never reused. */
  #number({ policies }: Inbound): void {
    let next: number = REFUSALS.REFUSED_POLICY;
    for (const number of this.#numbers.values()) next = Math.max(next, number + 1);
    for (const { name } of policies) {
      if (this.#numbers.has(name)) continue;
      this.#numbers.set(name, next < NUMBERS ? next++ : REFUSALS.REFUSED_OTHER);
    }
  }

  #write(set: PinnedSet): void {
    installInnerMap(this.#maps.inbound_text, encodeSet(set)).close();
    this.#enforcesEstablished = set.enforcesEstablished ?? false;
  }

  #make(compiled: Compiled): { outer: BpfMap; inner: BpfMap }[] {
    const made: { outer: BpfMap; inner: BpfMap }[] = [];
    const create = (outer: BpfMap, spec: Omit<Parameters<typeof BpfMap.create>[0], "name">): BpfMap => {
      const inner = BpfMap.create({ ...spec, name: outer.info.name.slice(0, 15) });
      made.push({ outer, inner });
      return inner;
    };
    try {
      const { inbound_ports, inbound_cells, inbound_sources, inbound_dests } = this.#maps;
      const ports = create(inbound_ports, {
        ...{ type: "hash", keySize: 4, valueSize: PORT.size, flags: FLAG.noPrealloc },
        maxEntries: Math.max(1, compiled.ports.length),
      });
      fillPorts(ports, compiled);
      const cells = create(inbound_cells, {
        ...{ type: "array", keySize: 4, valueSize: CELL.size, flags: FLAG.innerMap },
        maxEntries: Math.max(1, compiled.cells.length),
      });
      this.#fillCells(cells, compiled.cells);
      for (const [outer, list] of [
        [inbound_sources, compiled.sources],
        [inbound_dests, compiled.destinations],
      ] as const) {
        const trie = create(outer, {
          ...{ type: "lpm-trie", keySize: PREFIX.size, valueSize: 4, flags: FLAG.noPrealloc },
          maxEntries: Math.max(1, list.length),
        });
        fillTrie(trie, list);
      }
      return made;
    } catch (error) {
      for (const { inner } of made) inner.close();
      throw error;
    }
  }

  #fillCells(map: BpfMap, cells: readonly Cell[]): void {
    const values = new Uint16Array(cells.length * 2);
    cells.forEach(({ plaintext, anybody }, i) => {
      values[2 * i] = this.#numberOf(plaintext);
      values[2 * i + 1] = this.#numberOf(anybody);
    });
    const keys = Uint32Array.from({ length: cells.length }, (_, i) => i);
    map.updateBatch(new Uint8Array(keys.buffer), new Uint8Array(values.buffer), cells.length);
  }

  #numberOf(refuser: Refuser | undefined): number {
    if (refuser === undefined) return REFUSALS.REFUSED_NOT;
    if (refuser === "strict") return REFUSALS.REFUSED_STRICT;
    if (refuser === "too-large") return REFUSALS.REFUSED_TOO_LARGE;
    return this.#numbers.get(refuser.policy) ?? REFUSALS.REFUSED_OTHER;
  }
}

function fillPorts(map: BpfMap, { ports, destinationClasses }: Compiled): void {
  const keys = Uint32Array.from(ports, ({ port }) => port);
  const values = new DataView(new ArrayBuffer(ports.length * PORT.size));
  const { first_cell, destinations, mode, flags } = PORT.fields;
  for (const [i, port] of ports.entries()) {
    const at = i * PORT.size;
    values.setUint32(at + first_cell.offset, port.firstCell, true);
    values.setUint32(at + destinations.offset, port.byDestination ? destinationClasses : 1, true);
    values.setUint8(at + mode.offset, MODE_NUMBER[port.mode]);
    values.setUint8(
      at + flags.offset,
      (port.bySource ? PORT_FLAGS.PORT_BY_SOURCE : 0) |
        (port.byDestination ? PORT_FLAGS.PORT_BY_DESTINATION : 0),
    );
  }
  map.updateBatch(new Uint8Array(keys.buffer), new Uint8Array(values.buffer), ports.length);
}

/** One by one: kernels before 5.15 or so have no batch calls for tries; BpfMap detects that. */
function fillTrie(map: BpfMap, list: readonly Classified[]): void {
  const keys = new Uint8Array(new ArrayBuffer(list.length * PREFIX.size));
  const view = new DataView(keys.buffer);
  list.forEach(({ prefix }, i) => {
    view.setUint32(i * PREFIX.size + PREFIX.fields.bits.offset, prefixBits(prefix), true);
    keys.set(parseAddress(prefix.address) ?? new Uint8Array(16), i * PREFIX.size + PREFIX.fields.word.offset);
  });
  const classes = Uint32Array.from(list, (each) => each.class);
  map.updateBatch(keys, new Uint8Array(classes.buffer), list.length);
}
