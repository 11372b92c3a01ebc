/**
 * Mesh names in the kernel: publishes the mesh's names to the pinned table, and attaches the programs that answer from it to
 * the egress of this network namespace's interfaces, also of later ones. Everything stays when this process ends.
 *
 * Publishing a mesh never throws here: connections don't wait for names.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { reasonOf } from "../errors/reason.ts";
import { isOnBpffs, unpin } from "../kernel/bpffs.ts";
import { InterfaceWatch } from "../kernel/net/interfaces.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { attachEverywhere, detachEverywhere, type HeldLinks } from "./attach.ts";
import { countsOf } from "./counts.ts";
import { Entries, type Entry } from "./entries.ts";
import { localResolvers, nssResolved } from "./local-resolvers.ts";
import { NAME_FLAGS } from "./name-table.ts";
import {
  closeNames,
  hasOtherLayout,
  linkFolder,
  type NamesOpened,
  openNames,
  removeOthers,
  repinNames,
  tableFolder,
} from "./pins.ts";
import { asksForAll, readResolvConf, searchDomain } from "./resolv-conf.ts";
import type { Coverage, LocalResolver, NamesSettings, NamesStatus } from "./status.ts";
import { labelCount, wireName } from "./wire.ts";

export interface NamesOptions extends NamesSettings {
  bpffs: string;
  log(line: string): void;
  /** Whether this process still owns the pins. */
  ownsPins(): boolean;
  /** Called when the table was filled, or other interfaces are covered. */
  changed(): void;
  /** Whether a cgroup (by id) is governed. Throws KernelError. */
  isEnrolled(cgroup: bigint): boolean;
}

/** Interval of the check for new and vanished interfaces, milliseconds. */
const WATCH = 250;
/** Interval of the check that everything is attached, and pause after an error, milliseconds. */
const UPKEEP = 5_000;
/** Lifetime of the cached list of local resolvers, milliseconds. */
const FRESH = 1_000;

export class Names {
  readonly #options: NamesOptions;
  #settings: NamesSettings;
  #held: NamesOpened | undefined;
  readonly #links: HeldLinks = new Map();
  #watch: InterfaceWatch | undefined;
  #entries = new Entries();
  #mesh: Mesh | undefined;
  /** Whether the table has the mesh's names. */
  #filled = false;
  #skipped: NamesStatus["skipped"] = [];
  #writes = 0;
  #coverage: Coverage[] = [];
  #trouble = "";
  #search: string | undefined;
  #lastResolvers: LocalResolver[] | undefined;
  #resolversUnknown = "";
  #resolversAt: number | undefined;
  #lastLook = 0;
  #timer: ReturnType<typeof setInterval> | undefined;
  #opening: ReturnType<typeof setTimeout> | undefined;

  constructor(options: NamesOptions) {
    this.#options = options;
    this.#settings = options;
    this.#timer = setInterval(() => this.#lookAfter(), WATCH);
    this.#timer.unref?.();
  }

  /** Publishes the mesh's names; the first time after a moment. Never throws. */
  publish(mesh: Mesh, changes: Changes): void {
    this.#mesh = mesh;
    if (!this.#held || !this.#filled) {
      this.#opening ??= setTimeout(() => this.#attempt(() => this.#fill()), 0);
      return;
    }
    if (changes.everything) this.#attempt(() => this.#fill());
    else if (changes.names.size > 0) this.#attempt(() => this.#update(changes.names));
  }

  /** Applies settings. Never throws. */
  configure(settings: NamesSettings): void {
    this.#settings = settings;
    this.#resolversAt = undefined;
    if (this.#mesh) this.#attempt(() => this.#fill());
  }

  status(): NamesStatus {
    const resolvers = this.#resolvers();
    return {
      dns: this.#settings.dns,
      askers: this.#askers(resolvers),
      ...(resolvers ? { resolvers } : { resolversUnknown: this.#resolversUnknown }),
      ...this.#localHost(),
      entries: this.#held?.table.size ?? 0,
      hosts: this.#entries.hosts,
      writes: this.#writes,
      interfaces: this.#coverage,
      counts: this.#held ? countsOf(this.#held.maps.names_counts) : {},
      skipped: [...this.#skipped, ...this.#entries.skipped],
      ...(this.#trouble === "" ? {} : { trouble: this.#trouble }),
    };
  }

  /** Repairs pins, then closes descriptors and timers. The pinned programs continue to answer. */
  close(): void {
    clearInterval(this.#timer);
    clearTimeout(this.#opening);
    if (this.#filled)
      this.#attempt(() => {
        this.#repin();
        this.#attach();
      });
    this.#closeLinks();
    const held = this.#held;
    this.#held = undefined;
    if (!held) return;
    this.#watch?.close();
    closeNames(held);
  }

  /** Whose queries are answered. All clients of a governed local resolver get answers. */
  #askers(resolvers: readonly LocalResolver[] = []): NamesStatus["askers"] {
    const { dns, everybody } = this.#settings;
    if (dns === "off") return "nobody";
    if (dns === "on" || everybody) return "everybody";
    return asksForAll() || resolvers.some(({ governed }) => governed) ? "machine" : "enrolled";
  }

  /** Whether the program answers every cgroup. */
  #answersEveryCgroup(): boolean {
    return this.#settings.dns === "on" || this.#settings.everybody || asksForAll();
  }

  /** The local resolvers; undefined when the kernel can't list UDP sockets. Cached. */
  #resolvers(): LocalResolver[] | undefined {
    if (this.#settings.dns === "off") return [];
    const now = performance.now();
    if (this.#resolversAt !== undefined && now - this.#resolversAt < FRESH) return this.#lastResolvers;
    this.#resolversAt = now;
    try {
      const every = this.#answersEveryCgroup();
      const found = localResolvers(
        readResolvConf().servers,
        (cgroup) => every || this.#options.isEnrolled(cgroup),
      );
      const nss = asksForAll() && !found.some(({ program }) => program === "systemd-resolved");
      this.#lastResolvers = nss ? [nssResolved(), ...found] : found;
    } catch (error) {
      this.#lastResolvers = undefined;
      this.#resolversUnknown = reasonOf(error);
    }
    return this.#lastResolvers;
  }

  #localHost(): { localHost?: string } {
    for (const localHost of this.#mesh?.names.keys() ?? [])
      if (localHost.endsWith(".local") && !localHost.startsWith("*.")) return { localHost };
    return {};
  }

  #attempt(step: () => void): void {
    this.#opening = undefined;
    if (!this.#options.ownsPins()) return;
    try {
      step();
      this.#trouble = "";
    } catch (error) {
      const text = reasonOf(error);
      this.#filled = false;
      this.#lastLook = performance.now();
      if (text !== this.#trouble)
        this.#options.log(
          `mesh names are not up to date in the kernel: ${text}. Next try in ${UPKEEP / 1000} s`,
        );
      this.#trouble = text;
    }
  }

  #open(): NamesOpened {
    if (this.#held) return this.#held;
    const { bpffs, log } = this.#options;
    const held = openNames(bpffs, (error) =>
      log(`records of mesh names can't be used again before the next start: ${reasonOf(error)}`),
    );
    if (held.unreadable !== undefined)
      log(
        `the pinned table of mesh names can't be read (${held.unreadable}): a new one takes its place once it is filled`,
      );
    this.#held = held;
    return held;
  }

  /** Compares the whole table with the mesh. */
  #fill(): void {
    const mesh = this.#mesh;
    if (!mesh) return;
    if (this.#settings.dns === "off") {
      this.#detach();
      return;
    }
    const { table } = this.#open();
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
    const { skipped, writes } = table.apply(changes);
    this.#skipped = skipped;
    this.#writes += writes;
    table.searchDepth =
      this.#search === undefined ? 0 : labelCount(wireName(this.#search) ?? new Uint8Array());
    table.flags = flagsOf(this.#settings, this.#answersEveryCgroup());
    this.#filled = true;
    this.#attach();
    removeOthers(this.#options.bpffs);
    this.#options.changed();
  }

  #update(hosts: ReadonlySet<string>): void {
    const { table } = this.#held ?? {};
    if (!table) return;
    const touched = new Set<string>();
    for (const host of hosts) this.#entries.set(host, this.#mesh?.names.get(host), touched);
    const { skipped, writes } = table.apply(
      [...touched].map((name) => [name, this.#entries.get(name)] as const),
    );
    this.#skipped = [...this.#skipped.filter(({ name }) => !touched.has(name)), ...skipped];
    this.#writes += writes;
  }

  /** Entries without a host of the mesh. */
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

  /** Before the first push: attaches an earlier agent's table to new interfaces, too. */
  #adopt(): void {
    this.#lastLook = performance.now();
    const { bpffs } = this.#options;
    const links = linkFolder(bpffs);
    if (!existsSync(tableFolder(bpffs)) || !existsSync(links)) return;
    if (!this.#held && hasOtherLayout(bpffs)) return;
    // An empty table was not filled yet. The attached programs answer from another one.
    if ((this.#open().table.flags & NAME_FLAGS.NAMES_ON) !== 0) this.#attach();
  }

  #attach(): void {
    const held = this.#held;
    // Links without a pin would end at once. The data path reports that the bpffs is gone.
    if (!held || !isOnBpffs(this.#options.bpffs)) return;
    const before = this.#coverage;
    this.#coverage = attachEverywhere(linkFolder(this.#options.bpffs), held.programs, this.#links);
    if (!isDeepStrictEqual(before, this.#coverage)) this.#options.changed();
    const failed = this.#coverage.flatMap(({ name, error }) =>
      error === undefined ? [] : [`${name}: ${error}`],
    );
    if (failed.length > 0) throw new Error(failed.join("; "));
  }

  #repin(): void {
    if (!this.#held) return;
    const lost = repinNames(this.#options.bpffs, this.#held);
    if (lost.length > 0)
      this.#options.log(`somebody removed pins of mesh names; pinned again: ${lost.join(", ")}`);
  }

  #closeLinks(): void {
    for (const link of this.#links.values()) link.close();
    this.#links.clear();
  }

  #detach(): void {
    this.#closeLinks();
    detachEverywhere(linkFolder(this.#options.bpffs));
    this.#coverage = [];
    this.#filled = false;
  }

  #lookAfter(): void {
    const now = performance.now();
    const due = now - this.#lastLook > UPKEEP;
    if (this.#settings.dns === "off") {
      if (due && this.#trouble !== "") this.#attempt(() => this.#detach());
      return;
    }
    if (!this.#mesh) {
      if (due) this.#attempt(() => this.#adopt());
      return;
    }
    if (!this.#held || !this.#filled) {
      if (due) this.#attempt(() => this.#fill());
      return;
    }
    this.#attempt(() => {
      this.#watch ??= new InterfaceWatch();
      const changed = this.#watch.changed();
      if (!changed && !due) return;
      this.#lastLook = now;
      if (due) this.#repin();
      this.#attach();
      if (due && this.#held) this.#held.table.flags = flagsOf(this.#settings, this.#answersEveryCgroup());
      if (searchDomain() !== this.#search) this.#fill();
    });
  }
}

/**
 * Removes names from the kernel: detaches the programs, also filters of kernels before 6.6, and removes the pins. Returns
 * whether there were any. Throws KernelError.
 */
export function removeNames(bpffs: string): boolean {
  const folder = join(bpffs, "names");
  if (!existsSync(folder)) return false;
  detachEverywhere(linkFolder(bpffs));
  unpin(folder);
  return true;
}

function flagsOf({ shadow, forwarded, truncate }: NamesSettings, everyCgroup: boolean): number {
  return (
    NAME_FLAGS.NAMES_ON |
    (everyCgroup ? NAME_FLAGS.NAMES_EVERY_CGROUP : 0) |
    (shadow ? NAME_FLAGS.NAMES_SHADOW : 0) |
    (forwarded ? NAME_FLAGS.NAMES_FORWARDED : 0) |
    (truncate ? NAME_FLAGS.NAMES_TRUNCATE : 0)
  );
}
