/**
 * Istio's standard TCP metrics, by the names of its sidecar's stats filter (istio_stats.cc of istio/proxy). Directions are
 * those of a proxy that stands before the server: at reporter="source" *received* is what our app sent, *sent* what it got
 * back.
 */

import { type Family, labelSet } from "./exposition.ts";
import { ISTIO_FIELDS, type IstioField, type Tally } from "./tally.ts";

const FAMILIES: Readonly<Record<IstioField, { name: string; help: string }>> = {
  opened: { name: "istio_tcp_connections_opened", help: "The total number of TCP connections opened" },
  closed: { name: "istio_tcp_connections_closed", help: "The total number of TCP connections closed" },
  received: {
    name: "istio_tcp_received_bytes",
    help: "The size of total bytes received during request in case of a TCP connection",
  },
  sent: {
    name: "istio_tcp_sent_bytes",
    help: "The size of total bytes sent during response in case of a TCP connection",
  },
};

/** The four families and istio_build. */
export function istioFamilies({ istio }: Tally, version: string): Family[] {
  const used = istio.used();
  const sets = used.flatMap((index) => istio.sets[index] ?? []);
  const build = labelSet([
    ["component", "proxy"],
    ["tag", `kmesh-${version}`],
  ]);
  return [
    ...ISTIO_FIELDS.map(
      (field): Family => ({
        ...FAMILIES[field],
        type: "counter",
        sets,
        values: istio.column(field, used),
      }),
    ),
    {
      name: "istio_build",
      help: "Istio component build info",
      type: "gauge",
      sets: [build],
      values: [1],
    },
  ];
}
