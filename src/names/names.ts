/**
 * Mesh names in the kernel: the pinned table follows the mesh, and the programs that answer from it hang at the egress of
 * this network namespace's interfaces, also of those that come later. All of it stays when this process ends:
 *
 *     names/counts                      counters, which outlive every table
 *     names/<abi>/tables/<map>          the table of one layout
 *     names/<abi>/programs/<code>/...   programs over it, by the hash of their object file
 *     names/links/<ifindex>             one link an interface, where the kernel has links there (6.6)
 *
 * Nothing here throws at those who publish a mesh: connections don't wait for names.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { keptPin } from "../datapath/generation/pins.ts";
import { ensureBpffs, unpin } from "../kernel/bpffs.ts";
import { fetchAtomics } from "../kernel/features.ts";
import { InterfaceWatch } from "../kernel/interfaces.ts";
import { BpfMap } from "../kernel/maps.ts";
import { BpfObject, BpfProgram } from "../kernel/object.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { asset } from "../runtime/assets.ts";
import { attachEverywhere, detachEverywhere, type NamePrograms, PROGRAMS } from "./attach.ts";
import { Entries, type Entry } from "./entries.ts";
import { asksForAll, searchDomain } from "./resolv-conf.ts";
import type { Coverage, NameCounts, NamesSettings, NamesStatus } from "./status.ts";
import * as layout from "./table/layout.gen.ts";
import { NAME_FLAGS, type NameMaps, NameTable } from "./table/name-table.ts";
import { labelCount, wireName } from "./wire.ts";

export interface NamesOptions extends NamesSettings {
  bpffs: string;
  log(line: string): void;
  /** Whether what is pinned still is this process's to change. */
  ownsPins(): boolean;
}

/** Between two looks at whether interfaces came or went, milliseconds. */
const WATCH = 250;
/** Between two looks at whether everything is still attached, and after what went wrong, milliseconds. */
const UPKEEP = 5_000;

interface Held {
  maps: NameMaps;
  table: NameTable;
  programs: NamePrograms;
  watch: InterfaceWatch;
}

export class Names {
  readonly #options: NamesOptions;
  #settings: NamesSettings;
  #held: Held | undefined;
  #entries = new Entries();
  #mesh: Mesh | undefined;
  /** The table is the mesh's. */
  #filled = false;
  #skipped: NamesStatus["skipped"] = [];
  #coverage: Coverage[] = [];
  #trouble = "";
  #search: string | undefined;
  #lastLook = 0;
  #timer: ReturnType<typeof setInterval> | undefined;
  #opening: ReturnType<typeof setTimeout> | undefined;

  constructor(options: NamesOptions) {
    this.#options = options;
    this.#settings = options;
    this.#timer = setInterval(() => this.#lookAfter(), WATCH);
    this.#timer.unref?.();
  }

  /** Makes the mesh's names what queries are answered by; the first time a moment later. Never throws. */
  publish(mesh: Mesh, changes: Changes): void {
    this.#mesh = mesh;
    if (!this.#held || !this.#filled) {
      this.#opening ??= setTimeout(() => this.#attempt(() => this.#fill()), 0);
      return;
    }
    if (changes.everything) this.#attempt(() => this.#fill());
    else if (changes.names.size > 0) this.#attempt(() => this.#update(changes.names));
  }

  /** Other settings from now on. Never throws. */
  configure(settings: NamesSettings): void {
    this.#settings = settings;
    if (this.#mesh) this.#attempt(() => this.#fill());
  }

  status(): NamesStatus {
    return {
      dns: this.#settings.dns,
      askers: this.#askers(),
      entries: this.#held?.table.size ?? 0,
      hosts: this.#entries.hosts,
      interfaces: this.#coverage,
      counts: this.#held ? countsOf(this.#held.maps.names_counts) : {},
      skipped: [...this.#skipped, ...this.#entries.skipped],
      ...(this.#trouble === "" ? {} : { trouble: this.#trouble }),
    };
  }

  /** Lets go of descriptors and timers; what is pinned goes on answering. */
  close(): void {
    clearInterval(this.#timer);
    clearTimeout(this.#opening);
    const held = this.#held;
    this.#held = undefined;
    if (!held) return;
    held.table.close();
    held.watch.close();
    for (const program of held.programs.values()) program.close();
    for (const map of Object.values(held.maps)) map.close();
  }

  /** Whose queries are answered. */
  #askers(): NamesStatus["askers"] {
    const { dns, everybody } = this.#settings;
    if (dns === "off") return "nobody";
    if (dns === "on" || everybody) return "everybody";
    return asksForAll() ? "machine" : "enrolled";
  }

  #attempt(step: () => void): void {
    this.#opening = undefined;
    if (!this.#options.ownsPins()) return;
    try {
      step();
      this.#trouble = "";
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      this.#filled = false;
      this.#lastLook = performance.now();
      if (text !== this.#trouble)
        this.#options.log(
          `mesh names are not up to date in the kernel: ${text}. Next try in ${UPKEEP / 1000} s`,
        );
      this.#trouble = text;
    }
  }

  /** The whole table, compared with what the mesh says. */
  #fill(): void {
    const mesh = this.#mesh;
    if (!mesh) return;
    if (this.#settings.dns === "off") {
      this.#detach();
      return;
    }
    this.#held ??= open(this.#options.bpffs);
    const { table } = this.#held;
    const ignored = new Set<string>();
    this.#entries = new Entries();
    this.#entries.exclude(this.#settings.excludes);
    for (const [host, name] of mesh.names) this.#entries.set(host, name, ignored);
    const wanted = this.#extra();
    for (const name of this.#entries.names()) {
      const entry = this.#entries.get(name);
      if (entry) wanted.set(name, entry);
    }
    const changes: [string, Entry | undefined][] = [...wanted];
    for (const name of table.names()) if (!wanted.has(name)) changes.push([name, undefined]);
    this.#skipped = table.apply(changes).skipped;
    table.searchDepth =
      this.#search === undefined ? 0 : labelCount(wireName(this.#search) ?? new Uint8Array());
    table.flags = flagsOf(this.#settings, this.#askers());
    this.#filled = true;
    this.#attach();
    removeOthers(this.#options.bpffs);
  }

  #update(hosts: ReadonlySet<string>): void {
    const { table } = this.#held ?? {};
    if (!table) return;
    const touched = new Set<string>();
    for (const host of hosts) this.#entries.set(host, this.#mesh?.names.get(host), touched);
    const { skipped } = table.apply([...touched].map((name) => [name, this.#entries.get(name)] as const));
    this.#skipped = [...this.#skipped.filter(({ name }) => !touched.has(name)), ...skipped];
  }

  /** Entries that no host of the mesh has. */
  #extra(): Map<string, Entry> {
    const extra = new Map<string, Entry>();
    for (const suffix of this.#settings.excludes)
      for (const name of [suffix, `*.${suffix}`]) extra.set(name, { kind: "pass", name });
    this.#search = searchDomain();
    if (this.#search !== undefined) {
      const name = `/${this.#search}`;
      extra.set(name, { kind: "search", name });
    }
    return extra;
  }

  /** Before the first push: what an earlier agent left goes on, on new interfaces, too. */
  #adopt(): void {
    this.#lastLook = performance.now();
    const { bpffs } = this.#options;
    const links = linkFolder(bpffs);
    if (!existsSync(tableFolder(bpffs)) || !existsSync(links)) return;
    if (!this.#held && hasOtherLayout(bpffs)) return;
    this.#held ??= open(bpffs);
    this.#attach();
  }

  #attach(): void {
    const held = this.#held;
    if (!held) return;
    this.#coverage = attachEverywhere(linkFolder(this.#options.bpffs), held.programs);
    const failed = this.#coverage.flatMap(({ name, error }) =>
      error === undefined ? [] : [`${name}: ${error}`],
    );
    if (failed.length > 0) throw new Error(failed.join("; "));
  }

  #detach(): void {
    detachEverywhere(linkFolder(this.#options.bpffs));
    this.#coverage = [];
    this.#filled = false;
  }

  #lookAfter(): void {
    const now = performance.now();
    const due = now - this.#lastLook > UPKEEP;
    if (this.#settings.dns === "off") return;
    if (!this.#mesh) {
      if (due) this.#attempt(() => this.#adopt());
      return;
    }
    if (!this.#held || !this.#filled) {
      if (due) this.#attempt(() => this.#fill());
      return;
    }
    const { watch } = this.#held;
    this.#attempt(() => {
      const changed = watch.changed();
      if (!changed && !due) return;
      this.#lastLook = now;
      this.#attach();
      if (due && this.#held) this.#held.table.flags = flagsOf(this.#settings, this.#askers());
      if (searchDomain() !== this.#search) this.#fill();
    });
  }
}

/** Whether another layout's table is there: this one then waits for its first push. */
function hasOtherLayout(bpffs: string): boolean {
  return readdirSync(join(bpffs, "names")).some(
    (name) => name !== "links" && name !== "counts" && name !== layout.ABI_ID,
  );
}

/** What `kmesh down` removes beside pins: filters of kernels before 6.6. Throws KernelError. */
export function removeNames(bpffs: string): void {
  if (existsSync(join(bpffs, "names"))) detachEverywhere(linkFolder(bpffs));
}

/** The pinned table and the program that explains it, to look at. Undefined when there are none. The caller closes. */
export function pinnedNames(
  bpffs: string,
): { table: NameTable; explain: BpfProgram; counts: NameCounts; close(): void } | undefined {
  const folder = tableFolder(bpffs);
  if (!existsSync(join(folder, "tables"))) return undefined;
  const maps = openMaps(bpffs, folder);
  const [code] = readdirSync(join(folder, "programs")).filter((name) => !name.endsWith("_new"));
  if (code === undefined) return undefined;
  const explain = BpfProgram.fromPin(join(folder, "programs", code, "names_explain"));
  const table = new NameTable(maps);
  return {
    table,
    explain,
    counts: countsOf(maps.names_counts),
    close() {
      table.close();
      explain.close();
      for (const map of Object.values(maps)) map.close();
    },
  };
}

/** By event, in the kernel's order. */
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

/** The event of a number that `names_explain` gave. */
export function eventOf(number: number): string {
  const found = Object.entries(layout.enums.names_count).find(([, value]) => value === number);
  return eventName(found?.[0] ?? "NAMES_UNKNOWN");
}

function eventName(name: string): string {
  return name.replace("NAMES_", "").toLowerCase().replaceAll("_", "-");
}

function flagsOf({ shadow, forwarded }: NamesSettings, askers: NamesStatus["askers"]): number {
  return (
    NAME_FLAGS.NAMES_ON |
    (askers === "enrolled" ? 0 : NAME_FLAGS.NAMES_EVERY_CGROUP) |
    (shadow ? NAME_FLAGS.NAMES_SHADOW : 0) |
    (forwarded ? NAME_FLAGS.NAMES_FORWARDED : 0)
  );
}

function linkFolder(bpffs: string): string {
  return join(bpffs, "names", "links");
}

function tableFolder(bpffs: string): string {
  return join(bpffs, "names", layout.ABI_ID);
}

function countsPin(bpffs: string): string {
  return join(bpffs, "names", "counts");
}

function ownImage(): { image: Uint8Array; code: string } {
  const image = asset(fetchAtomics() ? "names.bpf.o" : "names.compat.bpf.o");
  return { image, code: createHash("sha256").update(image).digest("hex").slice(0, 12) };
}

/** Maps of the connections' side that say who is governed and who is an agent. */
const SHARED: ReadonlySet<string> = new Set(["agents", "enrolled", "units", "enrolment", "verdicts"]);

/** Where a map is pinned. */
function pinOf(bpffs: string, folder: string, name: string): string {
  if (name === "names_counts") return countsPin(bpffs);
  return SHARED.has(name) ? keptPin(bpffs, name) : join(folder, "tables", name);
}

const MAPS = Object.keys(layout.maps) as (keyof typeof layout.maps)[];

function openMaps(bpffs: string, folder: string): NameMaps {
  const maps: Partial<Record<keyof typeof layout.maps, BpfMap>> = {};
  try {
    for (const name of MAPS) maps[name] = BpfMap.fromPin(pinOf(bpffs, folder, name));
    return maps as NameMaps;
  } catch (error) {
    for (const map of Object.values(maps)) map.close();
    throw error;
  }
}

/** Adopts the pinned table, or makes an empty one; then the programs over it. Throws KernelError. */
function open(bpffs: string): Held {
  const { image, code } = ownImage();
  const folder = tableFolder(bpffs);
  ensureBpffs(linkFolder(bpffs));
  const programFolder = join(folder, "programs", code);
  if (!existsSync(folder)) build(bpffs, folder, image, code);
  const maps = openMaps(bpffs, folder);
  try {
    if (!isComplete(programFolder, maps)) buildPrograms(programFolder, image, maps);
    const programs = new Map(PROGRAMS.map((name) => [name, BpfProgram.fromPin(join(programFolder, name))]));
    return { maps, table: new NameTable(maps), programs, watch: new InterfaceWatch() };
  } catch (error) {
    for (const map of Object.values(maps)) map.close();
    throw error;
  }
}

/** Whether programs are there that read these maps: one of them may have been lost and made anew. */
function isComplete(folder: string, maps: NameMaps): boolean {
  if (!existsSync(folder)) return false;
  using program = BpfProgram.fromPin(join(folder, "names_ethernet"));
  const ids = new Set(program.mapIds());
  return MAPS.every((name) => ids.has(maps[name].info.id));
}

/** Under another name until it is complete. */
function build(bpffs: string, folder: string, image: Uint8Array, code: string): void {
  const unfinished = `${folder}_new`;
  unpin(unfinished);
  mkdirSync(join(unfinished, "tables"), { recursive: true, mode: 0o700 });
  using object = BpfObject.open(image, "names");
  for (const name of MAPS) {
    const pin = pinOf(bpffs, unfinished, name);
    if (!existsSync(pin)) continue;
    using map = BpfMap.fromPin(pin);
    object.useMap(name, map);
  }
  object.load();
  for (const name of MAPS) {
    const pin = pinOf(bpffs, unfinished, name);
    if (existsSync(pin)) continue;
    using map = object.map(name);
    map.pin(pin);
  }
  pinPrograms(join(unfinished, "programs", code), object);
  renameSync(unfinished, folder);
}

function buildPrograms(folder: string, image: Uint8Array, maps: NameMaps): void {
  using object = BpfObject.open(image, "names");
  for (const name of MAPS) object.useMap(name, maps[name]);
  object.load();
  const unfinished = `${folder}_new`;
  unpin(unfinished);
  pinPrograms(unfinished, object);
  unpin(folder);
  renameSync(unfinished, folder);
}

function pinPrograms(folder: string, object: BpfObject): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  for (const name of PROGRAMS) {
    using program = object.program(name);
    program.pin(join(folder, name));
  }
}

/** Other layouts and other code: nothing is attached to them any more. */
function removeOthers(bpffs: string): void {
  const { code } = ownImage();
  const names = join(bpffs, "names");
  for (const name of readdirSync(names))
    if (name !== "links" && name !== "counts" && name !== layout.ABI_ID) unpin(join(names, name));
  const programs = join(tableFolder(bpffs), "programs");
  for (const name of readdirSync(programs)) if (name !== code) unpin(join(programs, name));
}
