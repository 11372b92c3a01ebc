/** How telemetry names this machine's workload, by the labels that Istio takes for it. */
import type { Config } from "../config/config.ts";

/** This machine as a workload of the mesh. */
export interface OwnWorkload {
  workload: string;
  namespace: string;
  canonicalService: string;
  canonicalRevision: string;
  cluster: string;
}

/** `host` is the machine's name, for a machine that has no other. */
export function ownWorkload(config: Config, host: string): OwnWorkload {
  const { labels, namespace, clusterId: cluster } = config;
  const workload = config.workloadGroup ?? config.workloadEntry ?? config.workloadName ?? config.name ?? host;
  return {
    workload,
    namespace,
    canonicalService:
      labels["service.istio.io/canonical-name"] ?? labels["app.kubernetes.io/name"] ?? labels.app ?? workload,
    canonicalRevision:
      labels["service.istio.io/canonical-revision"] ??
      labels["app.kubernetes.io/version"] ??
      labels.version ??
      "latest",
    cluster,
  };
}

/**
 * The `baggage` header of HBONE (W3C Baggage), with the members that ztunnel sends: peers label their metrics by it. istiod has
 * WorkloadEntries as pods.
 */
export function baggageOf(own: OwnWorkload, locality: { region: string; zone: string } | undefined): string {
  const members = {
    "k8s.cluster.name": own.cluster,
    "k8s.namespace.name": own.namespace,
    "k8s.pod.name": own.workload,
    "service.name": own.canonicalService,
    "service.version": own.canonicalRevision,
    "cloud.region": locality?.region ?? "",
    "cloud.availability_zone": locality?.zone ?? "",
  };
  return Object.entries(members)
    .filter(([, value]) => value !== "")
    .map(([name, value]) => `${name}=${value.replace(/[^\w.:/-]/g, encodeURIComponent)}`)
    .join(",");
}
