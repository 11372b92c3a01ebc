/** Metrics of the tunnel's processes, as their status files have them. */
import type { WayCounters } from "../../tunnel/counters.ts";
import type { TunnelStatus } from "../../tunnel/process/status-file.ts";
import { type Family, type Labels, labelSet } from "./exposition.ts";

type Sample = { labels: Labels; value: number };

/**
 * One series for each process that lives: each counts from its own start, so their sum would fall when one ends. Nothing
 * where there is no tunnel.
 */
export function tunnelFamilies(processes: readonly TunnelStatus[]): Family[] {
  if (processes.length === 0) return [];
  const of = (each: TunnelStatus): Labels => [["pid", String(each.pid)]];
  const ways = (value: (row: WayCounters) => number): Sample[] =>
    processes.flatMap((each) =>
      Object.entries(each.ways).map(
        ([way, row]): Sample => ({
          labels: [...of(each), ["direction", way]],
          value: value(row),
        }),
      ),
    );
  const failures = processes.flatMap((each) =>
    Object.entries(each.ways).flatMap(([way, row]) =>
      Object.entries(row.failures).map(
        ([reason, value]): Sample => ({
          labels: [...of(each), ["direction", way], ["reason", reason]],
          value,
        }),
      ),
    ),
  );
  const handshakes = processes.flatMap((each) =>
    Object.entries(each.handshakes).map(
      ([side, value]): Sample => ({
        labels: [...of(each), ["side", side]],
        value,
      }),
    ),
  );
  const family = (name: string, help: string, type: Family["type"], samples: Sample[]): Family => ({
    ...{ name, help, type },
    sets: samples.map(({ labels }) => labelSet(labels)),
    values: samples.map(({ value }) => value),
  });
  const counter = (name: string, help: string, samples: Sample[]) => family(name, help, "counter", samples);
  const gauge = (name: string, help: string, samples: Sample[]) => family(name, help, "gauge", samples);
  const draining = processes.filter((each) => each.draining).length;
  return [
    gauge(
      "kmesh_tunnel_processes",
      "Tunnel processes that accept connections, and that end with their last one",
      [
        { labels: [["state", "accepting"]], value: processes.length - draining },
        { labels: [["state", "draining"]], value: draining },
      ],
    ),
    counter(
      "kmesh_tunnel_connections",
      "Connections and HBONE streams that were carried",
      ways(({ total }) => total),
    ),
    gauge(
      "kmesh_tunnel_open_connections",
      "Connections and HBONE streams that are open",
      ways(({ open }) => open),
    ),
    gauge(
      "kmesh_tunnel_pending_connections",
      "Connections that wait for a handshake or for the peer",
      ways(({ pending }) => pending),
    ),
    counter(
      "kmesh_tunnel_sent_bytes",
      "Bytes from apps of this machine to peers, of connections that ended",
      ways(({ sent }) => sent),
    ),
    counter(
      "kmesh_tunnel_received_bytes",
      "Bytes from peers to apps of this machine, of connections that ended",
      ways(({ received }) => received),
    ),
    counter(
      "kmesh_tunnel_failures",
      "Connections that the tunnel refused or could not carry, by reason",
      failures,
    ),
    counter("kmesh_tunnel_handshakes", "TLS handshakes that succeeded", handshakes),
    gauge(
      "kmesh_tunnel_certificate_expiration_timestamp_seconds",
      "When the certificate ends that new handshakes use",
      processes.flatMap((each) => {
        const { notAfter } = each.certificate;
        return notAfter === undefined ? [] : [{ labels: of(each), value: notAfter / 1000 }];
      }),
    ),
  ];
}
