/** The network interfaces of the calling thread's network namespace. */
import { check } from "../error.ts";
import { native } from "../native.ts";

export interface Interface {
  index: number;
  name: string;
  /** What stands before the IP header of its packets; "other" is none of what kmesh knows. */
  link: "ethernet" | "loopback" | "bare" | "other";
  up: boolean;
  /** It belongs to a bridge, bond or team, whose own device its packets pass first. */
  enslaved: boolean;
}

/** struct interface of native/egress.c. */
const RECORD = 32;
/** Interfaces that one call has room for; a machine with more takes a second call. */
const ROOM = 256;

/** ARPHRD_... of linux/if_arp.h. */
const LINKS: Readonly<Record<number, Interface["link"]>> = {
  1: "ethernet",
  772: "loopback",
  // No link header: tun, WireGuard; PPP; IPIP, 6in4, GRE.
  65534: "bare",
  512: "bare",
  768: "bare",
  769: "bare",
  776: "bare",
  778: "bare",
  823: "bare",
};
const IFF_UP = 1;

/** All interfaces. `room` is how many the first call has room for. Throws KernelError. */
export function interfaces(room = ROOM): Interface[] {
  const bytes = new Uint8Array(new ArrayBuffer(room * RECORD));
  const count = check(native().kmesh_interfaces(bytes, room), "netlink", "RTM_GETLINK");
  // Some to spare: interfaces may come between the two calls.
  if (count > room) return interfaces(count + ROOM);
  const view = new DataView(bytes.buffer);
  return Array.from({ length: count }, (_, i) => {
    const at = i * RECORD;
    const text = Buffer.from(bytes.buffer, at + 12, 20).toString("latin1");
    return {
      index: view.getUint32(at, true),
      name: text.slice(0, text.indexOf("\0")),
      link: LINKS[view.getUint16(at + 8, true)] ?? "other",
      up: (view.getUint32(at + 4, true) & IFF_UP) !== 0,
      enslaved: view.getUint16(at + 10, true) !== 0,
    };
  });
}

/** Hears of interfaces that come, go or change. Owns a descriptor. */
export class InterfaceWatch {
  #fd: number;

  /** Throws KernelError. */
  constructor() {
    this.#fd = check(native().kmesh_interfaces_watch(), "netlink", "RTMGRP_LINK");
  }

  /** Whether anything happened since the last call. Does not wait. Throws KernelError. */
  changed(): boolean {
    return check(native().kmesh_interfaces_changed(this.#fd), "recv", "RTMGRP_LINK") !== 0;
  }

  close(): void {
    if (this.#fd >= 0) native().kmesh_close(this.#fd);
    this.#fd = -1;
  }
}
