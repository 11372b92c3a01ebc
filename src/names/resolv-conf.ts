/** The machine's resolver configuration (resolv.conf(5)). */
import { readFileSync } from "node:fs";
import { wireName } from "./wire.ts";

export interface ResolvConf {
  servers: string[];
  search: string[];
}

/** The file's settings; empty when it can't be read. */
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
    // The last line wins.
    if (key === "search" || key === "domain") found.search = values;
  }
  return found;
}

/** The first search domain. Resolvers query a short name with it before the name itself. */
export function searchDomain(path?: string): string | undefined {
  const first = readResolvConf(path).search[0]?.toLowerCase().replace(/\.$/, "");
  return first !== undefined && wireName(first) ? first : undefined;
}

/** Whether a resolver queries for all apps: nss-resolve passes names to systemd-resolved without a packet of the app. */
export function asksForAll(path = "/etc/nsswitch.conf"): boolean {
  try {
    return /^hosts:.*\bresolve\b/m.test(readFileSync(path, "utf8"));
  } catch {
    return false;
  }
}
