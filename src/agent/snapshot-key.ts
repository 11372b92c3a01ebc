/** The settings to which a snapshot is bound. */
import type { Config } from "../config/config.ts";
import { localityOf } from "../machine/node.ts";
import { usesTunnel } from "../machine/tunnel/listener.ts";
import type { SnapshotKey } from "../state/snapshot.ts";

/** Settings that change the mesh which istiod's configuration becomes. A snapshot is valid for equal values only. */
export function snapshotSettings(config: Config): SnapshotKey["settings"] {
  const labels = Object.entries(config.labels).sort(([a], [b]) => (a < b ? -1 : 1));
  const locality = localityOf(config);
  return {
    mode: config.mode,
    "allow-plaintext": config.allowPlaintext,
    // Absent by default, as in snapshots of versions without this setting.
    ...(usesTunnel(config) ? { tunnel: true } : {}),
    namespace: config.namespace,
    "service-account": config.serviceAccount,
    "cluster-id": config.clusterId,
    network: config.network,
    ...(config.trustDomainAliases.length > 0
      ? { "trust-domain-aliases": config.trustDomainAliases.join() }
      : {}),
    ...(labels.length > 0 ? { labels: labels.map(([key, value]) => `${key}=${value}`).join(",") } : {}),
    ...(locality ? { locality: Object.values(locality).join("/").replace(/\/+$/, "") } : {}),
  };
}
