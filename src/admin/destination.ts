import { canonicalAddress } from "../mesh/address.ts";

/** The destination that a user names: a host or an address (canonical, without brackets), and the port if given. */
export interface Destination {
  host: string;
  /** Set when `host` is an IP address. */
  address: string | undefined;
  port: number | undefined;
}

/** Parses `HOST`, `HOST:PORT`, `IP:PORT`, `[IPv6]:PORT`, a bare address. Gives undefined for anything else. */
export function parseDestination(text: string): Destination | undefined {
  const whole = canonicalAddress(text);
  if (whole !== undefined) return { host: whole, address: whole, port: undefined };
  const found = /^(\[[^\]]+\]|[A-Za-z0-9*_][A-Za-z0-9._*-]*)(?::(\d{1,5}))?$/.exec(text);
  if (!found?.[1]) return undefined;
  const address = canonicalAddress(found[1]);
  if (found[1].startsWith("[") && address === undefined) return undefined;
  const port = found[2] === undefined ? undefined : Number(found[2]);
  if (port !== undefined && (port < 1 || port > 65535)) return undefined;
  return { host: address ?? found[1].toLowerCase(), address, port };
}
