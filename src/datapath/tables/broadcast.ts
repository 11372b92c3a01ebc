/**
 * Exempts this machine's IPv4 broadcast addresses, which accept no connections. They are entries among the exclusions. A
 * bit filter in the settings avoids the lookup for most other addresses.
 */
import { networkInterfaces } from "node:os";
import { formatV4, parseV4 } from "../../mesh/address.ts";
import type { Match } from "../../mesh/model.ts";
import type { Tables } from "./tables.ts";

/** The value of a broadcast address in the table of exclusions; configured exclusions have 0. */
export const BROADCAST_ID = 1;

/** The broadcast addresses of this network namespace's interfaces, sorted. */
export function broadcastAddresses(interfaces = networkInterfaces()): string[] {
  const found = Object.values(interfaces).flatMap((addresses = []) =>
    addresses.flatMap(({ family, address, netmask }) => {
      const [host, mask] = [parseV4(address), parseV4(netmask)];
      if (family !== "IPv4" || host === undefined || mask === undefined) return [];
      // A network of one or two addresses has none (RFC 3021).
      const hosts = ~mask >>> 0;
      return hosts < 3 ? [] : [formatV4((host | hosts) >>> 0)];
    }),
  );
  return [...new Set(found)].sort();
}

/** Sets the exempt broadcast addresses, independent of configured exclusions. Returns the records written. Throws KernelError. */
export function exemptBroadcasts(tables: Tables, addresses: readonly string[]): number {
  const { exclusions, settings } = tables;
  const listed = exclusions.list();
  const held = listed.filter(({ id }) => id === BROADCAST_ID).map(({ match }) => match);
  const configured = new Set(
    listed.filter(({ id }) => id !== BROADCAST_ID).map(({ match }) => textOf(match)),
  );
  const wanted = addresses
    .map((address): Match => ({ kind: "prefix", address, length: 32, port: 0 }))
    .filter((match) => !configured.has(textOf(match)));
  const [heldTexts, wantedTexts] = [new Set(held.map(textOf)), new Set(wanted.map(textOf))];
  const added = wanted.filter((match) => !heldTexts.has(textOf(match)));
  const removed = held.filter((match) => !wantedTexts.has(textOf(match)));
  if (added.length > 0) exclusions.add(added.map((match) => ({ match, id: BROADCAST_ID })));
  let filter = 0n;
  for (const address of addresses) filter |= 1n << BigInt(broadcastBit(address));
  const written = settings.set("broadcast_filter", filter);
  if (removed.length > 0) exclusions.remove(removed);
  return added.length + removed.length + written;
}

/** Like broadcast_bit() in bpf/include/exempt.h. */
function broadcastBit(address: string): number {
  return Math.imul(parseV4(address) ?? 0, 0x9e3779b1) >>> 26;
}

function textOf(match: Match): string {
  return JSON.stringify(match);
}
