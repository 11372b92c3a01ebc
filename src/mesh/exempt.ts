/**
 * Destinations that kmesh never governs, for any process. The BPF program has the same list (bpf/include/exempt.h;
 * exempt.test.ts compares them). The compiler adds a note to frontends in it, and `kmesh explain` names the block.
 */
import { contains, type Prefix } from "./address.ts";
import type { Match } from "./model.ts";

export interface ExemptBlock extends Prefix {
  /** A noun phrase for the block's addresses: "loopback". */
  what: string;
}

/** 240.0.0.0/4 is not exempt: istiod gives services without an address one of 240.240.0.0/16. */
export const EXEMPT: readonly ExemptBlock[] = [
  { address: "0.0.0.0", length: 8, what: "this host" },
  { address: "127.0.0.0", length: 8, what: "loopback" },
  { address: "169.254.0.0", length: 16, what: "link-local" },
  { address: "224.0.0.0", length: 4, what: "multicast" },
  { address: "255.255.255.255", length: 32, what: "broadcast" },
  { address: "fe80::", length: 10, what: "link-local" },
  { address: "ff00::", length: 8, what: "multicast" },
  { address: "::", length: 127, what: "unspecified or loopback" },
];

/** The exempt block with this address (canonical text); undefined when connections to it are governed. */
export function exemptBlockOf(address: string): ExemptBlock | undefined {
  return EXEMPT.find((block) => contains(block, address));
}

/**
 * The exempt block that holds all addresses of a frontend, so that no connection reaches it; undefined when there is
 * none.
 */
export function exemptBlockOfMatch(match: Match): ExemptBlock | undefined {
  if (match.kind === "port") return undefined;
  const length = match.kind === "prefix" ? match.length : Number.POSITIVE_INFINITY;
  const block = exemptBlockOf(match.address);
  return block && block.length <= length ? block : undefined;
}

/** "169.254.0.0/16 (link-local)" */
export function formatExemptBlock({ address, length, what }: ExemptBlock): string {
  return `${address}/${length} (${what})`;
}
