/** What systemd-resolved keeps to itself: names below .local go to no name server, unless a routing domain says so. */
import { spawnSync } from "node:child_process";
import { asksForAll, readResolvConf } from "../names/resolv-conf.ts";

/** How long resolvectl may take, milliseconds. */
const PATIENCE = 3_000;
/** Addresses at which resolved answers. */
const STUBS = ["127.0.0.53", "127.0.0.54"];

/** Why a name goes to no name server, and what to do. */
export interface KeptName {
  text: string;
  cure: string;
}

/** What resolved asks and what it routes, each by interface; "Global" is resolved.conf. */
export interface Resolved {
  servers: ReadonlyMap<string, readonly string[]>;
  /** Domains without "~". */
  domains: ReadonlyMap<string, readonly string[]>;
}

/** What `resolvectl dns` and `resolvectl domain` say; undefined when resolved does not run or resolvectl is missing. */
export function readResolved(): Resolved | undefined {
  const told = (what: string): string | undefined => {
    const { status, stdout } = spawnSync("resolvectl", [what], { encoding: "utf8", timeout: PATIENCE });
    return status === 0 ? stdout : undefined;
  };
  const servers = told("dns");
  const domains = servers === undefined ? undefined : told("domain");
  if (servers === undefined || domains === undefined) return undefined;
  return { servers: parseTable(servers), domains: parseTable(domains) };
}

/** Why the machine's resolver asks nobody for `name`, and the cure; undefined when it does, or is not systemd-resolved. */
export function lostInResolved(name: string): KeptName | undefined {
  // By nss-resolve, or by its stub's addresses.
  const isAsked = asksForAll() || readResolvConf().servers.some((server) => STUBS.includes(server));
  const resolved = isAsked ? readResolved() : undefined;
  return resolved && keptByResolved(name, resolved);
}

/** Lines "Global: WORD..." and "Link 3 (eth0): WORD...". */
export function parseTable(text: string): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const line of text.split("\n")) {
    const [, link, global, words = ""] = /^(?:Link \d+ \((.+?)\)|(Global)):(.*)$/.exec(line.trim()) ?? [];
    const name = link ?? global;
    if (name !== undefined)
      found.set(
        name,
        words
          .split(/\s+/)
          .filter(Boolean)
          .map((word) => word.replace(/^~/, "").toLowerCase()),
      );
  }
  return found;
}

/**
 * Why resolved asks nobody for `name`, and the cure; undefined when it does ask. A routing domain counts where the servers
 * are: one in resolved.conf has no effect when only interfaces have servers (seen with version 252).
 */
export function keptByResolved(name: string, resolved: Resolved): KeptName | undefined {
  const asked = [...resolved.servers].filter(([, servers]) => servers.length > 0).map(([link]) => link);
  if (asked.length === 0)
    return {
      text: "systemd-resolved has no name server, so it asks nobody",
      cure: 'Give it one, for example "DNS=127.0.0.1" below [Resolve] in /etc/systemd/resolved.conf.d/kmesh.conf, then systemctl restart systemd-resolved: mesh names need no server there.',
    };
  if (!/\.local$/i.test(name)) return undefined;
  const covers = (domain: string) =>
    domain !== "." && domain !== "local" && `.${name}`.endsWith(`.${domain}`);
  if (asked.some((link) => resolved.domains.get(link)?.some(covers))) return undefined;
  const domain = name.split(".").slice(-2).join(".");
  const links = asked.filter((link) => link !== "Global");
  const now = links.map((link) => `resolvectl domain ${link} '~${domain}'`).join("; ");
  const boot =
    links.length > 0
      ? `For every boot: Domains=~${domain} below [Network] in the .network file of ${links.join(", ")} (a line in resolved.conf has no effect there).`
      : `Domains=~${domain} below [Resolve] in /etc/systemd/resolved.conf.d/kmesh.conf, then systemctl restart systemd-resolved.`;
  return {
    text: "systemd-resolved keeps names below .local to itself (multicast DNS)",
    cure:
      links.length > 0
        ? `Now: ${now} (it replaces the interface's domains: add those of \`resolvectl domain\`). ${boot}`
        : boot,
  };
}
