/**
 * Finds resolvers on this machine that apps query instead of a name server: systemd-resolved, dnsmasq, unbound. They send
 * upstream queries from their own cgroup for all their clients.
 */
import { readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { basename, join } from "node:path";
import { cgroupPath } from "../kernel/cgroup.ts";
import { KernelError } from "../kernel/error.ts";
import { listUdpServers } from "../kernel/net/sockets.ts";
import { socketInodes } from "../kernel/process.ts";
import { canonicalAddress, formatAddress } from "../mesh/address.ts";
import type { LocalResolver } from "./status.ts";

const DNS_PORT = 53;
const ANY = ["0.0.0.0", "::"];
/** The kernel cuts a process's name to 15 bytes. */
const NAMES: Readonly<Record<string, string>> = {
  "systemd-resolve": "systemd-resolved",
  dnsmasq: "dnsmasq",
  unbound: "unbound",
  named: "named",
};

/** A UDP socket that receives queries. */
export interface DnsSocket {
  /** Canonical; "0.0.0.0" or "::" for all addresses. */
  address: string;
  inode: number;
  /** The id of the cgroup in which it was created; 0n when unknown. */
  cgroup: bigint;
}

/** Sockets of this network namespace on UDP port 53. Throws KernelError, also on a kernel without udp_diag. */
export function dnsSockets(): DnsSocket[] {
  const found: DnsSocket[] = [];
  for (const batch of listUdpServers())
    for (let i = 0; i < batch.count; i++) {
      const { localPort, local, family, inode, cgroup } = batch.at(i);
      if (localPort !== DNS_PORT) continue;
      const address = formatAddress(local);
      found.push({ address: family === 10 && address === "0.0.0.0" ? "::" : address, inode, cgroup });
    }
  return found;
}

/**
 * The local programs that receive queries for these servers of resolv.conf, each once. `isEnrolled` decides for a cgroup id.
 * Throws KernelError.
 */
export function localResolvers(
  servers: readonly string[],
  isEnrolled: (cgroup: bigint) => boolean,
): LocalResolver[] {
  const own = ownAddresses();
  const wanted = servers.flatMap((server) => canonicalAddress(server.replace(/%.*$/, "")) ?? []);
  const local = wanted.filter((server) => server.startsWith("127.") || own.has(server));
  if (local.length === 0) return [];
  const sockets = dnsSockets();
  return local.flatMap((server) => {
    const socket = listenerAt(sockets, server);
    return socket ? { via: server, ...ownerOf(socket), governed: isEnrolled(socket.cgroup) } : [];
  });
}

/** systemd-resolved, which apps reach by nss-resolve without a packet. */
export function nssResolved(): LocalResolver {
  return {
    via: "nss-resolve",
    program: "systemd-resolved",
    unit: "systemd-resolved.service",
    governed: true,
  };
}

/** The socket for this address: bound to it, or to all addresses. */
export function listenerAt(sockets: readonly DnsSocket[], address: string): DnsSocket | undefined {
  const family = address.includes(":") ? ["::"] : ANY;
  return (
    sockets.find((socket) => socket.address === address) ??
    sockets.find((socket) => family.includes(socket.address))
  );
}

function ownAddresses(): Set<string> {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
  return new Set(all.flatMap(({ address }) => canonicalAddress(address.replace(/%.*$/, "")) ?? []));
}

/**
 * The program of a socket, and its unit, by the cgroup: a service without CAP_SYS_PTRACE can't see other users' descriptors.
 * If the cgroup has several programs, a known resolver is preferred.
 */
function ownerOf({ inode, cgroup }: DnsSocket): { program: string; unit?: string } {
  const path = cgroup === 0n ? undefined : pathOf(cgroup);
  if (path === undefined) return { program: "a process" };
  const pids = readLines(join(path, "cgroup.procs")).map(Number);
  const nameOf = (pid: number) => readLines(`/proc/${pid}/comm`)[0] ?? "";
  const holder = pids.find((pid) => socketInodes(pid).includes(inode));
  const names = holder === undefined ? pids.map(nameOf) : [nameOf(holder)];
  const name = names.find((each) => NAMES[each] !== undefined) ?? names[0] ?? "";
  const unit = basename(path);
  return {
    program: NAMES[name] ?? (name || "a process"),
    ...(/\.(service|scope)$/.test(unit) ? { unit } : {}),
  };
}

function pathOf(cgroup: bigint): string | undefined {
  try {
    return cgroupPath(cgroup);
  } catch (error) {
    if (error instanceof KernelError) return undefined;
    throw error;
  }
}

/** The text of a file; empty when it is gone. */
function readLines(path: string): string[] {
  try {
    return readFileSync(path, "utf8").split("\n").filter(Boolean);
  } catch {
    return [];
  }
}
