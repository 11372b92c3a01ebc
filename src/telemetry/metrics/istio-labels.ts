/**
 * The labels of Istio's standard TCP metrics, as its sidecar's stats filter writes them (istio_stats.cc of istio/proxy): their
 * order, and the values of what is not known.
 */

import { hostOfService } from "../../mesh/model.ts";
import { parseCarried } from "../carried.ts";
import { parseWorkload } from "../labels.ts";
import type { Workload } from "../model.ts";
import { shortName } from "../sums.ts";
import type { Labels } from "./exposition.ts";

/** This machine, as its proxy would name it. */
export interface SelfLabels {
  workload: string;
  namespace: string;
  canonicalService: string;
  canonicalRevision: string;
  app: string;
  version: string;
  cluster: string;
  /** The SPIFFE id of its certificate. */
  principal: string;
}

const UNKNOWN = "unknown";
const NOBODY: Workload = {
  name: UNKNOWN,
  namespace: UNKNOWN,
  canonicalService: UNKNOWN,
  canonicalRevision: "latest",
  cluster: UNKNOWN,
};

/** What Envoy says of connections that it refuses, by our reasons (response flags of its access log). */
export const FLAGS: Readonly<Record<string, string>> = {
  "no-endpoint": "UH",
  "no-family": "UH",
  "other-netns": "UH",
  "missing-cluster": "NC",
  "max-connections": "UO",
};

/**
 * Of a connection from this machine; `workload` in the words of Labels.workload. What the tunnel carries by mutual TLS has both
 * principals and the policy mutual_tls, as ztunnel writes it; a sidecar leaves the policy to the other side.
 */
export function sourceLabels(
  self: SelfLabels,
  service: string | undefined,
  workload: string,
  flags: string,
): Labels {
  const peer = parseWorkload(workload) ?? NOBODY;
  const carried = parseCarried(workload);
  const isMutual = carried?.mutualTls === true;
  return [
    ["reporter", "source"],
    ...clientLabels(self, self.app, self.version, isMutual ? self.principal : ""),
    ...serverLabels(peer, isMutual ? carried.principal : "", UNKNOWN, UNKNOWN, service, peer.namespace),
    ["request_protocol", "tcp"],
    ["response_flags", flags],
    // The source does not know the peer's policy for other connections.
    ["connection_security_policy", isMutual ? "mutual_tls" : UNKNOWN],
  ];
}

/** Of a connection to this machine; `caller` in the words of Labels.caller. */
export function destinationLabels(self: SelfLabels, caller: string, service: string | undefined): Labels {
  const peer = parseWorkload(caller) ?? NOBODY;
  const carried = parseCarried(caller);
  const isMutual = carried?.mutualTls === true;
  const own = isMutual ? self.principal : "";
  return [
    ["reporter", "destination"],
    ...clientLabels({ ...peer, workload: peer.name }, UNKNOWN, UNKNOWN, isMutual ? carried.principal : ""),
    ...serverLabels({ ...self, name: self.workload }, own, self.app, self.version, service, self.namespace),
    ["request_protocol", "tcp"],
    ["response_flags", "-"],
    ["connection_security_policy", isMutual ? "mutual_tls" : "none"],
  ];
}

function clientLabels(
  who: Pick<SelfLabels, "workload" | "namespace" | "canonicalService" | "canonicalRevision" | "cluster">,
  app: string,
  version: string,
  principal: string,
): Labels {
  return [
    ["source_workload", known(who.workload)],
    ["source_canonical_service", known(who.canonicalService)],
    ["source_canonical_revision", who.canonicalRevision || "latest"],
    ["source_workload_namespace", known(who.namespace)],
    ["source_principal", known(principal)],
    ["source_app", known(app)],
    ["source_version", known(version)],
    ["source_cluster", known(who.cluster)],
  ];
}

function serverLabels(
  who: Workload,
  principal: string,
  app: string,
  version: string,
  service: string | undefined,
  namespace: string,
): Labels {
  const host = service === undefined ? UNKNOWN : hostOfService(service);
  return [
    ["destination_workload", known(who.name)],
    ["destination_workload_namespace", known(who.namespace)],
    ["destination_principal", known(principal)],
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
