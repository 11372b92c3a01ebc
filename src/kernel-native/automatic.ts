/**
 * Addresses that istiod allocates to services without any (IP auto allocation, pilot/pkg/controllers/ipallocate). No
 * network routes them. Apps get them only from istiod's name table; another resolver gives the real address.
 */
import { contains, type Prefix } from "../mesh/address.ts";

/** istiod's defaults for PILOT_IP_AUTOALLOCATE_IPV4_PREFIX and PILOT_IP_AUTOALLOCATE_IPV6_PREFIX. */
const AUTOMATIC: readonly Prefix[] = [
  { address: "240.240.0.0", length: 16 },
  { address: "2001:2::", length: 48 },
];

/** Whether istiod allocated this address (canonical text) to a service that has none of its own. */
export function isAutomatic(address: string): boolean {
  return AUTOMATIC.some((prefix) => contains(prefix, address));
}
