/** The node that this machine presents to istiod, from the configuration and the machine itself. */
import { hostname } from "node:os";
import type { Config } from "../config/config.ts";
import { type Identity, type Locality, usableAddresses } from "../istiod/node.ts";
import { version } from "../runtime/version.ts";
import { NO_USE, type TunnelUse } from "./tunnel/reach-watch.ts";

/** The label with the locality, if nothing else sets it. Dots replace slashes, which labels can't contain. */
const LOCALITY_LABEL = "istio-locality";

/** `addresses` are the machine's; the one that peers use is first. `use` says what the tunnel carries. */
export function nodeIdentity(
  config: Config,
  addresses: readonly string[],
  use: TunnelUse = NO_USE,
): Identity {
  const { serviceIp, workloadName, workloadGroup, workloadEntry, ports, readinessProbe } = config;
  const locality = localityOf(config);
  return {
    ips: usableAddresses(serviceIp === undefined ? addresses : [serviceIp, ...addresses]),
    name: config.name ?? (hostname().split(".")[0] || "vm"),
    namespace: config.namespace,
    serviceAccount: config.serviceAccount,
    clusterId: config.clusterId,
    network: config.network,
    meshId: config.meshId,
    ...(Object.keys(config.labels).length > 0 ? { labels: config.labels } : {}),
    ...(workloadName === undefined ? {} : { workloadName }),
    ...(workloadGroup === undefined ? {} : { autoRegisterGroup: workloadGroup }),
    ...(workloadEntry === undefined ? {} : { workloadEntry }),
    ...(ports === undefined ? {} : { podPorts: JSON.stringify(ports) }),
    ...(readinessProbe === undefined ? {} : { proxyConfig: { readinessProbe } }),
    ...(locality ? { locality } : {}),
    metadata: config.metadata,
    ...(use.outbound ? { sendsHbone: true } : {}),
    reach: use.reach,
    version,
  };
}

/** The configured locality, or the label's; undefined without either. */
export function localityOf({ locality, labels }: Pick<Config, "locality" | "labels">): Locality | undefined {
  if (locality.region !== "") return locality;
  const label = labels[LOCALITY_LABEL] ?? "";
  const [region = "", zone = "", subzone = ""] = label.split(label.includes("/") ? "/" : ".");
  return region === "" ? undefined : { region, zone, subzone };
}
