/**
 * Authorization of inbound connections: publishes the mesh's policies to the pinned tables, and attaches the program that
 * decides by them to this network namespace. Everything continues when this process ends.
 *
 * Publishing a mesh never throws here: outbound connections don't wait for it.
 */
import { existsSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { reasonOf } from "../errors/reason.ts";
import type { NetnsLink } from "../kernel/net/netns-link.ts";
import { canonicalAddress } from "../mesh/address.ts";
import { type Inbound, mtlsOf } from "../mesh/inbound.ts";
import { openPolicySet } from "../policy/pinned.ts";
import { attachInbound } from "./attach.ts";
import { cutEstablished } from "./established.ts";
import { HeldPorts } from "./held-ports.ts";
import {
  closeInbound,
  type InboundOpened,
  inboundPin,
  linkPin,
  openInbound,
  removeOtherInbound,
  repinInbound,
} from "./pins.ts";
import { InboundTables } from "./tables.ts";
import { hasListener } from "./view.ts";

export interface InboundOptions {
  bpffs: string;
  /** Off: the policies are not enforced. */
  enforce: boolean;
  /** Whether established connections are cut when the policies refuse them; default: no. */
  enforceEstablished?: boolean;
  /** The tunnel's processes. The tunnel cuts its connections itself. */
  tunnels?(): number[];
  log(line: string): void;
  /** Whether this process still owns the pins. */
  ownsPins(): boolean;
  /** Starts a tunnel, when a port needs one and none offers its listener. Must not throw. */
  wakeTunnel?(): void;
}

export type InboundSettings = Pick<InboundOptions, "enforce" | "enforceEstablished">;

export interface InboundStatus {
  enforce: boolean;
  attached: boolean;
  /** Published sets of policies since the start. */
  applied: number;
  lastMilliseconds?: number;
  /** Ports whose policies don't fit into the tables. All connections to them are refused. */
  tooLarge: readonly number[];
  /** Established connections that were cut since the start, by refuser; absent: they are not cut. */
  cut?: Readonly<Record<string, number>>;
  /** The reason why istiod's policies are not live. */
  trouble?: string;
}

/** Interval of the check of pins and attachment, and pause after an error, milliseconds. */
const UPKEEP = 5_000;
/** Delay of a second check of established connections, for handshakes that the old policies admitted, milliseconds. */
const SECOND_LOOK = 1_000;

export class InboundKeeper {
  readonly #options: InboundOptions;
  #enforce: boolean;
  #enforceEstablished: boolean;
  readonly #cut: Record<string, number> = {};
  #secondLook: ReturnType<typeof setTimeout> | undefined;
  #looked = false;
  #cutTrouble = "";
  #held: { opened: InboundOpened; tables: InboundTables } | undefined;
  #link: NetnsLink | undefined;
  /** As istiod says. */
  #named: Inbound | undefined;
  /** What governs: the same, and ports that istiod names no more. */
  #inbound: Inbound | undefined;
  readonly #heldPorts = new HeldPorts();
  #behind = false;
  #applied = 0;
  #lastMilliseconds: number | undefined;
  #trouble = "";
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(options: InboundOptions) {
    this.#options = options;
    this.#enforce = options.enforce;
    this.#enforceEstablished = options.enforceEstablished ?? false;
    this.#timer = setInterval(() => this.#lookAfter(), UPKEEP);
    this.#timer.unref?.();
    this.#attempt(() => this.#adopt());
  }

  /** Publishes the policies; undefined: they are not known, and the live ones stay. Never throws. */
  publish(inbound: Inbound | undefined): void {
    if (inbound === undefined || inbound === this.#named) return;
    this.#named = inbound;
    this.#attempt(() => this.#apply());
  }

  /** Applies settings. Never throws. */
  configure({ enforce, enforceEstablished = false }: InboundSettings): void {
    if (enforce === this.#enforce && enforceEstablished === this.#enforceEstablished) return;
    this.#enforce = enforce;
    this.#enforceEstablished = enforceEstablished;
    this.#looked = false;
    this.#attempt(() => this.#apply());
  }

  status(): InboundStatus {
    const trouble = this.#trouble || this.#cutTrouble;
    return {
      enforce: this.#enforce,
      attached: this.#link !== undefined,
      applied: this.#applied,
      ...(this.#lastMilliseconds === undefined ? {} : { lastMilliseconds: this.#lastMilliseconds }),
      tooLarge: this.#held?.tables.tooLarge ?? [],
      ...(this.#enforceEstablished ? { cut: { ...this.#cut } } : {}),
      ...(trouble === "" ? {} : { trouble }),
    };
  }

  /** Repairs pins, then closes descriptors and timers. The pinned program continues to decide. */
  close(): void {
    clearInterval(this.#timer);
    clearTimeout(this.#secondLook);
    if (this.#held) this.#attempt(() => this.#repin());
    this.#link?.close();
    this.#link = undefined;
    this.#held?.tables.close();
    if (this.#held) closeInbound(this.#held.opened);
    this.#held = undefined;
  }

  #attempt(step: () => void): void {
    if (!this.#options.ownsPins()) {
      this.#behind = true;
      return;
    }
    try {
      step();
      this.#trouble = "";
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      this.#behind = true;
      if (text !== this.#trouble)
        this.#options.log(
          `inbound policies are not up to date in the kernel: ${text}. What was live stays. Next try in ${UPKEEP / 1000} s`,
        );
      this.#trouble = text;
    }
  }

  /**
   * Before the first push: attaches what is pinned, if it was to govern. Somebody may have removed the link while no agent
   * ran, and until istiod answers nobody else would put it back.
   */
  #adopt(): void {
    const { bpffs } = this.#options;
    this.#behind = false;
    if (!this.#enforce || !existsSync(inboundPin(bpffs, "inbound_settings"))) return;
    const { opened, tables } = this.#open();
    if (!tables.isOn) return;
    tables.exempt(ownAddresses());
    this.#link = attachInbound(linkPin(bpffs), opened.program, this.#link);
  }

  #open(): { opened: InboundOpened; tables: InboundTables } {
    if (this.#held) return this.#held;
    const opened = openInbound(this.#options.bpffs);
    try {
      this.#held = { opened, tables: new InboundTables(opened.maps) };
      return this.#held;
    } catch (error) {
      closeInbound(opened);
      throw error;
    }
  }

  #apply(): void {
    if (!this.#named) return;
    const { bpffs } = this.#options;
    if (!this.#enforce) this.#heldPorts.clear();
    const pinned = this.#enforce ? pinnedSet(bpffs) : undefined;
    const { inbound, holds } = this.#heldPorts.over(this.#named, pinned, performance.now());
    this.#inbound = inbound;
    // A machine without services needs no program.
    if (inbound.ports.length === 0 && !this.#held && !existsSync(linkPin(bpffs))) {
      this.#behind = false;
      return;
    }
    const started = performance.now();
    const { opened, tables } = this.#open();
    tables.exempt(ownAddresses());
    if (this.#enforce) {
      const { changed } = tables.publish(inbound, this.#enforceEstablished);
      if (changed) this.#looked = false;
      if (changed) {
        this.#applied++;
        this.#lastMilliseconds = performance.now() - started;
      }
    } else tables.turnOff();
    // Fill the tables first: a program over empty tables would admit all connections.
    this.#link = attachInbound(linkPin(bpffs), opened.program, this.#link);
    removeOtherInbound(bpffs, opened.code);
    // The next look tries without the held ports.
    this.#behind = holds;
    this.#wake();
    this.#cutRefused();
  }

  /** Starts a tunnel: systemd holds its sockets, but the kernel can steer to them only after a first process has run. */
  #wake(): void {
    const { bpffs, wakeTunnel } = this.#options;
    const inbound = this.#inbound;
    if (!wakeTunnel || !inbound || !this.#enforce) return;
    if (inbound.ports.some((port) => mtlsOf(inbound, port) !== "disable") && !hasListener(bpffs))
      wakeTunnel();
  }

  /** Once for each set, and once more for handshakes that ended meanwhile. */
  #cutRefused(): void {
    if (!this.#enforceEstablished || !this.#enforce || this.#looked) return;
    this.#looked = true;
    this.#look();
    clearTimeout(this.#secondLook);
    this.#secondLook = setTimeout(() => this.#look(), SECOND_LOOK);
    this.#secondLook.unref?.();
  }

  /** Never throws: new connections are refused in any case. */
  #look(): void {
    const inbound = this.#inbound;
    const { bpffs, log, tunnels, ownsPins } = this.#options;
    if (!inbound || !this.#enforceEstablished || !this.#enforce || !ownsPins()) return;
    try {
      const cut = cutEstablished(inbound, {
        own: new Set(ownAddresses()),
        tunnels: tunnels?.() ?? [],
        steered: hasListener(bpffs),
      });
      for (const [by, count] of cut) {
        this.#cut[by] = (this.#cut[by] ?? 0) + count;
        log(
          `${count} established ${count === 1 ? "connection is" : "connections are"} cut: refused by ${by}`,
        );
      }
      this.#cutTrouble = "";
    } catch (error) {
      const text = `established connections are not cut: ${reasonOf(error)}`;
      if (text !== this.#cutTrouble) log(text);
      this.#cutTrouble = text;
    }
  }

  #repin(): void {
    const { bpffs, log } = this.#options;
    if (!this.#held) return;
    const { opened, tables } = this.#held;
    tables.exempt(ownAddresses());
    const lost = repinInbound(bpffs, opened);
    if (lost.length > 0) log(`somebody removed pins of inbound policies; pinned again: ${lost.join(", ")}`);
    if (this.#link) this.#link = attachInbound(linkPin(bpffs), opened.program, this.#link);
  }

  #lookAfter(): void {
    if (!this.#options.ownsPins()) return;
    if (this.#behind) this.#attempt(() => (this.#named ? this.#apply() : this.#adopt()));
    else if (this.#held)
      this.#attempt(() => {
        this.#repin();
        this.#wake();
      });
  }
}

/** The set that is live in the kernel; undefined when there is none, or none that can be read: it is written anew. */
function pinnedSet(bpffs: string): Inbound | undefined {
  try {
    using set = openPolicySet(bpffs);
    return set?.read()?.inbound;
  } catch {
    return undefined;
  }
}

/** All addresses of this network namespace, also those of bridges. */
function ownAddresses(): string[] {
  return Object.values(networkInterfaces()).flatMap((list) =>
    (list ?? []).flatMap(({ address }) => canonicalAddress(address.replace(/%.*/, "")) ?? []),
  );
}
