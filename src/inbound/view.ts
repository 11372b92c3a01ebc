/** Reads the live inbound policies and their refusals from the pins, with or without an agent. */
import { existsSync } from "node:fs";
import { reasonOf } from "../errors/reason.ts";
import { BpfMap } from "../kernel/maps.ts";
import { NetnsLink } from "../kernel/net/netns-link.ts";
import { type MtlsMode, mtlsOf } from "../mesh/inbound.ts";
import { keptInboundPin, openPolicySet } from "../policy/pinned.ts";
import * as layout from "./layout.gen.ts";
import { inboundPin, linkPin } from "./pins.ts";
import { type RecentRefusal, type Refusal, readRefusals } from "./refusals.ts";

export interface InboundView {
  /** Whether the tables are switched on and the program is attached to an existing network namespace. */
  enforced: boolean;
  ports: { port: number; mtls: MtlsMode }[];
  policies: { name: string; action: "allow" | "deny"; rules: number; ports?: readonly number[] }[];
  /** Whether a tunnel offers a listening socket. */
  tunnel: boolean;
  /** Refusers by descending count. */
  refusals: Refusal[];
  /** Newest first. */
  recent: RecentRefusal[];
  /** The reason why the pins can't be read. */
  trouble?: string;
}

/** Undefined when no inbound policies are pinned. Never throws: a read error is in `trouble`. */
export function viewInbound(bpffs: string): InboundView | undefined {
  try {
    return readView(bpffs);
  } catch (error) {
    const nothing = { ports: [], policies: [], refusals: [], recent: [] };
    return { enforced: false, tunnel: false, ...nothing, trouble: reasonOf(error) };
  }
}

function readView(bpffs: string): InboundView | undefined {
  using set = openPolicySet(bpffs);
  const inbound = set?.read()?.inbound;
  if (!inbound) return undefined;
  return {
    enforced: isOn(bpffs) && isAttached(bpffs),
    ports: inbound.ports.map((port) => ({ port, mtls: mtlsOf(inbound, port) })),
    policies: inbound.policies.map(({ name, action, rules, ports }) => ({
      name,
      action,
      rules: rules.length,
      ...(ports ? { ports } : {}),
    })),
    tunnel: hasListener(bpffs),
    ...(readRefusals(bpffs) ?? { refusals: [], recent: [] }),
  };
}

function isOn(bpffs: string): boolean {
  const pin = inboundPin(bpffs, "inbound_settings");
  if (!existsSync(pin)) return false;
  using map = BpfMap.fromPin(pin);
  const word = new BigUint64Array(new ArrayBuffer(8));
  map.lookup(new Uint8Array(4), new Uint8Array(word.buffer));
  return ((word[0] ?? 0n) & BigInt(layout.enums.inbound_flags.INBOUND_ON)) !== 0n;
}

function isAttached(bpffs: string): boolean {
  const pin = linkPin(bpffs);
  if (!existsSync(pin)) return false;
  try {
    using link = NetnsLink.fromPin(pin);
    return link.info().netns !== 0;
  } catch {
    return false;
  }
}

/** Whether a tunnel offers a listening socket, to which the kernel steers. Throws KernelError. */
export function hasListener(bpffs: string): boolean {
  const pin = keptInboundPin(bpffs, "inbound_listeners");
  if (!existsSync(pin)) return false;
  using map = BpfMap.fromPin(pin);
  const value = new Uint8Array(new ArrayBuffer(8));
  return [0, 1].some((index) => map.lookup(new Uint8Array(Uint32Array.of(index).buffer), value));
}
