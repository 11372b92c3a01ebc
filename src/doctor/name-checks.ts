/** Resolves a mesh name by the machine's own resolver, and reports which step lost the query. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import type { Config } from "../config/config.ts";
import { isV4 } from "../mesh/address.ts";
import { pinnedNames } from "../names/pins.ts";
import { asksForAll, readResolvConf } from "../names/resolv-conf.ts";
import type { NameCounts } from "../names/status.ts";
import type { Check, Finding } from "./check-runner.ts";
import { lostInResolved } from "./resolved.ts";

/** Time limit of the machine's resolver, milliseconds. */
const PATIENCE = 12_000;

export function nameChecks(config: Config): Check[] {
  return [{ name: "names", needs: ["bpffs"], look: () => lookAtNames(config) }];
}

function lookAtNames({ dns, bpffs }: Config): Finding[] {
  if (dns === "off") return [{ state: "ok", text: "mesh names are not answered (dns: off)" }];
  const { servers } = readResolvConf();
  if (servers.length === 0 && !asksForAll())
    return [
      {
        state: "warning",
        text: "/etc/resolv.conf names no server, so apps send no query that the kernel could answer",
        cure: 'Write a line like "nameserver 127.0.0.1" into it: mesh names need no server there.',
      },
    ];
  const names = pinnedNames(bpffs);
  if (!names) return [{ state: "ok", text: "no mesh names are in the kernel yet" }];
  try {
    const example = exampleOf(names.table);
    if (!example) return [{ state: "ok", text: "the mesh has no name with an IPv4 address to ask for" }];
    const before = names.counts();
    // In a child, because this process is exempt from the mesh.
    const { stdout } = spawnSync("getent", ["ahostsv4", example.name], {
      encoding: "utf8",
      timeout: PATIENCE,
    });
    const found = [...new Set((stdout ?? "").split("\n").flatMap((line) => line.split(/\s+/, 1)[0] || []))];
    if (found.some((address) => example.addresses.includes(address)))
      return [
        {
          state: "ok",
          text: `${example.name} resolves to ${found.join(", ")} through the machine's resolver`,
        },
      ];
    return [lostAt(example.name, found, servers, before, names.counts())];
  } finally {
    names.close();
  }
}

/** A name to query. */
function exampleOf(table: NonNullable<ReturnType<typeof pinnedNames>>["table"]) {
  for (const name of table.names()) {
    const entry = table.get(name);
    if (entry?.kind !== "addresses" || name.startsWith("*.") || !name.includes(".")) continue;
    const addresses = entry.addresses.filter(isV4);
    if (addresses.length > 0) return { name, addresses };
  }
  return undefined;
}

/** Finds the step that lost the query, by the kernel's counters. */
function lostAt(
  name: string,
  found: readonly string[],
  servers: readonly string[],
  before: NameCounts,
  after: NameCounts,
): Finding {
  const rose = (event: string) => (after[event] ?? 0) > (before[event] ?? 0);
  const got =
    found.length > 0
      ? `resolves to ${found.join(", ")}, which is not the mesh's address`
      : "does not resolve";
  if (rose("passed-not-enrolled"))
    return {
      state: "ok",
      text: `${name} ${got} from here: this command is not in a governed cgroup or unit (dns: on would answer everybody)`,
    };
  if (rose("answered-a"))
    return {
      state: "warning",
      text: `${name} ${got}, though the kernel answered a query: the local resolver dropped the answer`,
      cure: "Exempt the mesh's domain from its DNSSEC check, since mesh answers are not signed: domain-insecure in unbound.conf, or a negative trust anchor of systemd-resolved (dnssec-trust-anchors.d(5)).",
    };
  const why = lostInResolved(name);
  if (why) return { state: "warning", text: `${name} ${got}: ${why.text}`, cure: why.cure };
  const dead = servers.map((server) => ({ server, reason: unreachable(server) }));
  if (dead.every(({ reason }) => reason !== undefined))
    return {
      state: "warning",
      text: `${name} ${got}: no query leaves for a name server (${dead.map(({ server, reason }) => `${server}: ${reason}`).join("; ")})`,
      cure: "Mend the way to a server of /etc/resolv.conf, or name one that is there. For mesh names alone 127.0.0.1 will do: they need no server.",
    };
  return {
    state: "warning",
    text: `${name} ${got}, and no query for it left by UDP (servers: ${servers.join(", ")})`,
    cure: "See whether hosts: in /etc/nsswitch.conf has dns or resolve, whether /etc/hosts names it, and whether the local resolver uses TLS or TCP, or keeps .local to itself.",
  };
}

/** The kernel's IPv4 neighbours, as text; empty without IPv4. */
function neighbours(): string {
  try {
    return readFileSync("/proc/net/arp", "utf8");
  } catch {
    return "";
  }
}

/** Why no packet leaves for a name server; undefined when one can, as far as can be found out. */
function unreachable(server: string): string | undefined {
  const { status } = spawnSync("ip", ["route", "get", server], { timeout: PATIENCE, stdio: "ignore" });
  if (status !== null && status !== 0) return "there is no route to it";
  const entry = neighbours()
    .split("\n")
    .map((line) => line.split(/\s+/))
    .find(([address]) => address === server);
  // Flags 0: the address was asked for, and nobody answered.
  return entry?.[2] === "0x0" ? "nobody on its network answers to its address (ARP)" : undefined;
}
