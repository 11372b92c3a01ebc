/**
 * Cuts established plaintext connections that the policies no longer admit, like ztunnel. The tunnel cuts the connections
 * that it carries, because it knows their peers.
 */
import { readdirSync, readlinkSync } from "node:fs";
import { CONNECTED, destroySocket, listSockets } from "../kernel/net/sockets.ts";
import { formatAddress } from "../mesh/address.ts";
import { type Inbound, mtlsOf } from "../mesh/inbound.ts";
import { type Decision, judgeOf } from "../policy/decide.ts";

export interface Surroundings {
  /** The machine's addresses, canonical. Connections from them are exempt. */
  own: ReadonlySet<string>;
  /** The tunnel's processes. */
  tunnels: readonly number[];
  /** Whether new connections to ports with mutual TLS are steered to the tunnel. */
  steered: boolean;
}

/**
 * Resets the connections of this network namespace that `inbound` refuses. Returns their number by refuser. Throws
 * KernelError when the kernel can't list sockets or can't end connections.
 */
export function cutEstablished(inbound: Inbound, around: Surroundings): Map<string, number> {
  const ports = new Set(inbound.ports);
  const judge = judgeOf(inbound);
  const ofTunnels = new Set(around.tunnels.flatMap(socketsOf));
  const verdicts = new Map<string, Decision>();
  const refused: { record: Uint8Array; by: string }[] = [];
  for (const batch of listSockets(CONNECTED)) {
    for (let i = 0; i < batch.count; i++) {
      const { localPort, local, remote, inode } = batch.at(i);
      if (!ports.has(localPort)) continue;
      const source = formatAddress(remote);
      const destination = formatAddress(local);
      if (source === destination || isLoopback(source) || around.own.has(source)) continue;
      // A socket without an inode waits to be accepted: where connections are steered, by the tunnel.
      const waits = inode === 0 && around.steered && mtlsOf(inbound, localPort) !== "disable";
      if (waits || ofTunnels.has(inode)) continue;
      const key = `${source} ${destination} ${localPort}`;
      const verdict =
        verdicts.get(key) ??
        judge.decide({ sourceAddress: source, destinationAddress: destination, destinationPort: localPort });
      verdicts.set(key, verdict);
      if (!verdict.allowed) refused.push({ record: batch.record(), by: verdict.policy ?? verdict.reason });
    }
  }
  const cut = new Map<string, number>();
  for (const { record, by } of refused) if (destroySocket(record)) cut.set(by, (cut.get(by) ?? 0) + 1);
  return cut;
}

function isLoopback(address: string): boolean {
  return address === "::1" || address.startsWith("127.");
}

/** Inodes of a process's sockets; none when it has ended. */
function socketsOf(pid: number): number[] {
  const folder = `/proc/${pid}/fd`;
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch {
    return [];
  }
  return names.flatMap((name) => {
    try {
      const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`${folder}/${name}`))?.[1];
      return inode === undefined ? [] : [Number(inode)];
    } catch {
      // Closed meanwhile.
      return [];
    }
  });
}
