/** To which settings a snapshot is bound. */
import type { Config } from "../config/config.ts";
import { localityOf } from "../machine/node.ts";
import { usesTunnel } from "../machine/tunnel-listener.ts";
import type { SnapshotKey } from "../state/snapshot.ts";

/** The settings without which istiod's configuration would have become another mesh: a snapshot is only good for these. */
export function snapshotSettings(config: Config): SnapshotKey["settings"] {
  const labels = Object.entries(config.labels).sort(([a], [b]) => (a < b ? -1 : 1));
  const locality = localityOf(config);
  return {
    mode: config.mode,
    "allow-plaintext": config.allowPlaintext,
    // Absent without it, as in snapshots from before there was one.
    ...(usesTunnel(config) ? { tunnel: true } : {}),
    namespace: config.namespace,
    "service-account": config.serviceAccount,
    "cluster-id": config.clusterId,
    network: config.network,
    ...(labels.length > 0 ? { labels: labels.map(([key, value]) => `${key}=${value}`).join(",") } : {}),
    ...(locality ? { locality: Object.values(locality).join("/").replace(/\/+$/, "") } : {}),
  };
}
