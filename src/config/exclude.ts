/** Parses the setting `exclude`: destinations that are not governed. */
import { isV4, parsePrefix } from "../mesh/address.ts";
import { Invalid, parsePort } from "./syntax.ts";

/** Connections to `address`/`length` are not governed; port 0 means every port. */
export interface Exclude {
  address: string;
  length: number;
  port: number;
}

/** CIDR or ADDRESS, optionally with :PORT. An IPv6 block with a port has brackets. */
export function parseExclude(text: string): Exclude {
  const example = "Write CIDR or CIDR:PORT, for example 10.0.0.0/8, 192.0.2.7:443 or [fd00::/8]:443.";
  const found = /^(\[[^\]]+\]|[\d.]+(?:\/\d+)?)(?::([^:]*))?$/.exec(text);
  const block = parsePrefix(found?.[1] ?? text);
  if (!block) throw new Invalid(`"${text}" is not an address block`, example);
  return { ...block, port: found?.[2] === undefined ? 0 : parsePort(found[2], example) };
}

/** Formats an exclusion. */
export function formatExclude(exclude: Exclude): string {
  const block = `${exclude.address}/${exclude.length}`;
  if (exclude.port === 0) return block;
  return isV4(exclude.address) ? `${block}:${exclude.port}` : `[${block}]:${exclude.port}`;
}
