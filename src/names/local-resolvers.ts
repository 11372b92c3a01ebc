/**
 * Resolvers on this machine that apps ask instead of a name server: systemd-resolved, dnsmasq, unbound. They ask upstream
 * from their own cgroup, in the name of all who ask them.
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

/** A UDP socket that takes queries. */
export interface DnsSocket {
  /** Canonical; "0.0.0.0" or "::" for all addresses. */
  address: string;
  inode: number;
  /** Of the cgroup in which it was made; 0n when the kernel does not say. */
  cgroup: bigint;
}

/** Sockets of this network namespace on UDP port 53. Throws KernelError, also where the kernel has no udp_diag. */
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
 * Who takes the queries to these servers of resolv.conf, where that is a process of this machine; one for each program.
 * `isEnrolled` says it of a cgroup's id. Throws KernelError.
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

/** systemd-resolved as apps reach it by nss-resolve: by no packet. */
export function nssResolved(): LocalResolver {
  return {
    via: "nss-resolve",
    program: "systemd-resolved",
    unit: "systemd-resolved.service",
    governed: true,
  };
}

/** The socket that gets what is sent to this address: one that is bound to it, or one that is bound to all. */
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
 * The program that holds a socket, and its unit: by the cgroup, since another user's descriptors are hidden from a service
 * without CAP_SYS_PTRACE. Where the cgroup has several programs, the one that is known as a resolver.
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

/** Empty when the file is gone. */
function readLines(path: string): string[] {
  try {
    return readFileSync(path, "utf8").split("\n").filter(Boolean);
  } catch {
    return [];
  }
}
