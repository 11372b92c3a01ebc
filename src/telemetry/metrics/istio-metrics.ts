/**
 * Istio's standard TCP metrics, as its sidecar's stats filter writes them (istio_stats.cc of istio/proxy): names, labels and
 * their order, and the values of what is not known. Directions are those of a proxy that stands before the server: at
 * reporter="source" *received* is what our app sent, *sent* what it got back.
 */

import { REASONS } from "../../mesh/model.ts";
import { type Labels, parseWorkload } from "../labels.ts";
import type { Workload } from "../model.ts";
import type { Reading } from "../reading.ts";
import { addCounters, type Counters, closedOf, endsOf, noCounters } from "../rows.ts";
import { shortName } from "../sums.ts";
import { type Family, labelBlock, type Sample } from "./exposition.ts";

/** This machine, as its proxy would name it. */
export interface SelfLabels {
  workload: string;
  namespace: string;
  canonicalService: string;
  canonicalRevision: string;
  app: string;
  version: string;
  cluster: string;
}

/** Label sets at most; what comes after is added to its service's with an unknown destination workload. */
export const MOST_LABEL_SETS = 10_000;

const UNKNOWN = "unknown";
const NOBODY: Workload = {
  name: UNKNOWN,
  namespace: UNKNOWN,
  canonicalService: UNKNOWN,
  canonicalRevision: "latest",
  cluster: UNKNOWN,
};

/** What Envoy says of connections that it refuses, by our reasons (response flags of its access log). */
const FLAGS: Readonly<Record<string, string>> = {
  "no-endpoint": "UH",
  "no-family": "UH",
  "missing-cluster": "NC",
  "max-connections": "UO",
};
const CONNECT_FAILED = "UF";

/** A set of labels and its text. */
export interface LabelSet {
  labels: Sample["labels"];
  block: string;
}

/** Label sets by what they are made from: a scrape of ten thousand pairs would write 30 MB of them anew each time. */
export type LabelSets = Map<string, LabelSet>;

interface Series {
  set: LabelSet;
  opened: number;
  closed: number;
  /** Of the request: what the client sent. */
  received: number;
  sent: number;
}

/** The four families and istio_build. `inbound` names the service of a local port ("host:port"). */
export function istioFamilies(
  reading: Reading,
  labels: Labels,
  self: SelfLabels,
  inbound: (port: number) => string | undefined,
  version: string,
  sets: LabelSets = new Map(),
): Family[] {
  const series = new Map<LabelSet, Series>();
  if (sets.size > 2 * MOST_LABEL_SETS) sets.clear();
  const setOf = (key: string, make: () => Sample["labels"]): LabelSet => {
    let set = sets.get(key);
    if (!set) {
      const made = make();
      set = { labels: made, block: labelBlock(made) };
      sets.set(key, set);
    }
    return set;
  };
  const add = (set: LabelSet, more: Omit<Series, "set">) => {
    const known = series.get(set);
    if (!known) {
      series.set(set, { set, ...more });
      return;
    }
    known.opened += more.opened;
    known.closed += more.closed;
    known.received += more.received;
    known.sent += more.sent;
  };
  const out = (service: string | undefined, workload: string, counters: Counters) => {
    const named = series.size < MOST_LABEL_SETS ? workload : "";
    const source = (flags: string) =>
      setOf(`source\n${service}\n${named}\n${flags}`, () =>
        sourceSet(self, service, parseWorkload(named) ?? NOBODY, flags),
      );
    const failed =
      endsOf(counters, "refused") + endsOf(counters, "timed-out") + endsOf(counters, "unreachable");
    add(source("-"), {
      opened: counters.opened,
      closed: closedOf(counters) - failed,
      received: counters.sent,
      sent: counters.received,
    });
    if (failed > 0)
      add(source(CONNECT_FAILED), {
        opened: 0,
        closed: failed,
        received: 0,
        sent: 0,
      });
  };
  const accepted = (caller: string, port: number, counters: Counters) => {
    const at = inbound(port);
    const set = setOf(`destination\n${caller}\n${at}`, () =>
      destinationSet(self, parseWorkload(caller) ?? NOBODY, at),
    );
    add(set, {
      opened: counters.opened,
      closed: closedOf(counters),
      received: counters.received,
      sent: counters.sent,
    });
  };
  for (const { key, counters } of reading.rows) {
    const service = labels.service(key.service);
    if (key.direction === "out") out(service, labels.workload(key.endpoint), counters);
    else if (key.direction === "in") accepted(labels.caller(key.remote), key.port, counters);
    else {
      const { opened } = counters;
      const reason = REASONS[key.endpoint] ?? "internal";
      const flags = key.direction === "passed" ? "-" : (FLAGS[reason] ?? "DENY");
      const name =
        key.direction === "passed"
          ? "PassthroughCluster"
          : reason === "not-in-registry"
            ? "BlackHoleCluster"
            : undefined;
      const to = name ?? service;
      const set = setOf(`source\n${to}\n\n${flags}`, () => sourceSet(self, to, NOBODY, flags));
      add(set, { opened, closed: opened, received: 0, sent: 0 });
    }
  }
  for (const { service, workload, direction, counters } of reading.retired) {
    if (direction === "out") out(service === "" ? undefined : service, workload, counters);
    else if (direction === "in") accepted(workload, Number(service), counters);
    else if (direction === "refused" || direction === "passed") {
      const flags = direction === "passed" ? "-" : "DENY";
      const name = direction === "passed" ? "PassthroughCluster" : service;
      const to = name === "" ? undefined : name;
      const set = setOf(`source\n${to}\n\n${flags}`, () => sourceSet(self, to, NOBODY, flags));
      add(set, {
        opened: counters.opened,
        closed: counters.opened,
        received: 0,
        sent: 0,
      });
    }
  }
  const other = noCounters();
  addCounters(other, reading.other.out);
  if (other.opened > 0) out(undefined, "", other);
  const family = (name: string, help: string, value: (series: Series) => number): Family => ({
    name,
    help,
    type: "counter",
    samples: [...series.values()].map((each) => ({ ...each.set, value: value(each) })),
  });
  return [
    family(
      "istio_tcp_connections_opened",
      "The total number of TCP connections opened",
      ({ opened }) => opened,
    ),
    family(
      "istio_tcp_connections_closed",
      "The total number of TCP connections closed",
      ({ closed }) => closed,
    ),
    family(
      "istio_tcp_received_bytes",
      "The size of total bytes received during request in case of a TCP connection",
      ({ received }) => received,
    ),
    family(
      "istio_tcp_sent_bytes",
      "The size of total bytes sent during response in case of a TCP connection",
      ({ sent }) => sent,
    ),
    {
      name: "istio_build",
      help: "Istio component build info",
      type: "gauge",
      samples: [
        {
          labels: [
            ["component", "proxy"],
            ["tag", `kmesh-${version}`],
          ],
          value: 1,
        },
      ],
    },
  ];
}

function sourceSet(
  self: SelfLabels,
  service: string | undefined,
  peer: Workload,
  flags: string,
): Sample["labels"] {
  return [
    ["reporter", "source"],
    ...sourceLabels(self, self.app, self.version),
    ...destinationLabels(peer, UNKNOWN, UNKNOWN, service, peer.namespace),
    ["request_protocol", "tcp"],
    ["response_flags", flags],
    // The source never knows whether the peer took it for mutual TLS.
    ["connection_security_policy", UNKNOWN],
  ];
}

function destinationSet(self: SelfLabels, peer: Workload, service: string | undefined): Sample["labels"] {
  return [
    ["reporter", "destination"],
    ...sourceLabels({ ...peer, workload: peer.name }, UNKNOWN, UNKNOWN),
    ...destinationLabels({ ...self, name: self.workload }, self.app, self.version, service, self.namespace),
    ["request_protocol", "tcp"],
    ["response_flags", "-"],
    ["connection_security_policy", "none"],
  ];
}

function sourceLabels(
  who: Pick<SelfLabels, "workload" | "namespace" | "canonicalService" | "canonicalRevision" | "cluster">,
  app: string,
  version: string,
): Sample["labels"] {
  return [
    ["source_workload", known(who.workload)],
    ["source_canonical_service", known(who.canonicalService)],
    ["source_canonical_revision", who.canonicalRevision || "latest"],
    ["source_workload_namespace", known(who.namespace)],
    ["source_principal", UNKNOWN],
    ["source_app", known(app)],
    ["source_version", known(version)],
    ["source_cluster", known(who.cluster)],
  ];
}

function destinationLabels(
  who: Workload,
  app: string,
  version: string,
  service: string | undefined,
  namespace: string,
): Sample["labels"] {
  const host = service?.replace(/:\d+$/, "") ?? UNKNOWN;
  return [
    ["destination_workload", known(who.name)],
    ["destination_workload_namespace", known(who.namespace)],
    ["destination_principal", UNKNOWN],
    ["destination_app", known(app)],
    ["destination_version", known(version)],
    ["destination_service", host],
    ["destination_canonical_service", known(who.canonicalService)],
    ["destination_canonical_revision", who.canonicalRevision || "latest"],
    ["destination_service_name", shortName(host)],
    ["destination_service_namespace", known(namespace)],
    ["destination_cluster", known(who.cluster)],
  ];
}

function known(text: string): string {
  return text === "" ? UNKNOWN : text;
}
