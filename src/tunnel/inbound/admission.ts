/** Decides about inbound connections, once for each, after the handshake. */
import { networkInterfaces } from "node:os";
import { canonicalAddress } from "../../mesh/address.ts";
import type { Identity, MtlsMode } from "../../mesh/inbound.ts";
import { TUNNEL_PORTS } from "../../mesh/tunnel-address.ts";
import { TunnelFailure } from "../failure.ts";

export interface InboundConnection {
  sourceAddress: string;
  destinationAddress: string;
  destinationPort: number;
  /** The peer's verified identity; absent: plaintext. */
  identity?: Identity;
}

export interface Admission {
  /** Whether to admit the connection. Must not throw: an undecidable connection is refused. */
  decide(connection: InboundConnection): { allowed: boolean; reason: string; policy?: string };
  /** PeerAuthentication's mode of the port. `undefined`: the port belongs to no service of this machine. */
  mtls(port: number): MtlsMode | undefined;
  /** Trust domains whose workloads are accepted beside those of our own. Must not throw. */
  trustDomains?(): readonly string[];
  /** A version that changes with the policies. Undefined: established connections are not cut. Must not throw. */
  establishedRevision?(): number | undefined;
}

/** Refuses all connections while the policies are unknown. */
export const NOBODY: Admission = {
  decide: () => ({ allowed: false, reason: "the policies are not known" }),
  mtls: () => "strict",
};

/**
 * Checks the destination of a CONNECT: an address of this machine other than loopback, which would lead back into the
 * tunnel or to what listens for this machine alone, and no port of the tunnel's. Gives it. Throws TunnelFailure:
 * `bad-request` for what is no ADDRESS:PORT, `not-ours`.
 */
export function parseDestination(authority: string): { address: string; port: number } {
  const [, host = "", digits = ""] = /^(\[[0-9a-fA-F:.]+\]|[0-9.]+):(\d{1,5})$/.exec(authority) ?? [];
  const address = canonicalAddress(host);
  const port = Number(digits);
  if (address === undefined || port < 1 || port > 65_535)
    throw new TunnelFailure("bad-request", "the authority is no ADDRESS:PORT");
  if (isLoopback(address) || !ownAddresses().has(address))
    throw new TunnelFailure("not-ours", `${address} is not this machine's`);
  if (isOwnPort(port)) throw new TunnelFailure("not-ours", `port ${port} is kmesh's own`);
  return { address, port };
}

export function isOwnPort(port: number): boolean {
  return TUNNEL_PORTS.has(port);
}

function isLoopback(address: string): boolean {
  return address === "::1" || address.startsWith("127.");
}

const OWN_FOR = 1_000;
let own = new Set<string>();
let ownUntil = 0;

function ownAddresses(): ReadonlySet<string> {
  const now = performance.now();
  if (now < ownUntil) return own;
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
  own = new Set(all.map(({ address }) => canonicalAddress(address) ?? address));
  ownUntil = now + OWN_FOR;
  return own;
}
