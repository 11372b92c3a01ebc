/** The machine's resolver configuration (resolv.conf(5)). */
import { readFileSync } from "node:fs";
import { wireName } from "./wire.ts";

export interface ResolvConf {
  servers: string[];
  search: string[];
}

/** What the file says; empty when it can't be read. */
export function readResolvConf(path = "/etc/resolv.conf"): ResolvConf {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return { servers: [], search: [] };
  }
  const found: ResolvConf = { servers: [], search: [] };
  for (const line of text.split("\n")) {
    const [key, ...values] = line.trim().split(/\s+/);
    if (key === "nameserver" && values[0]) found.servers.push(values[0]);
    // The last one counts.
    if (key === "search" || key === "domain") found.search = values;
  }
  return found;
}

/** The first search domain: names below it are asked for before the short ones that are meant. */
export function searchDomain(path?: string): string | undefined {
  const first = readResolvConf(path).search[0]?.toLowerCase().replace(/\.$/, "");
  return first !== undefined && wireName(first) ? first : undefined;
}

/** Whether a resolver asks in the name of all: nss-resolve hands names to systemd-resolved by no packet of the app's. */
export function asksForAll(path = "/etc/nsswitch.conf"): boolean {
  try {
    return /^hosts:.*\bresolve\b/m.test(readFileSync(path, "utf8"));
  } catch {
    return false;
  }
}
