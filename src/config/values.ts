/** A configuration as values by setting, as in the file. */
import type { Json } from "../istiod/node.ts";
import { formatTarget } from "../istiod/target.ts";
import type { Config } from "./config.ts";
import { formatExclude } from "./exclude.ts";
import type { SettingName } from "./settings.ts";
import { formatFilter } from "./telemetry.ts";

export type SettingValues = Record<SettingName, Json>;

/** A list with one element is written as that element. */
export function oneOrAll(addresses: readonly string[]): Json {
  const [first = ""] = addresses;
  return addresses.length === 1 ? first : addresses;
}

/** Null stands for a setting without value and default. */
export function settingValues(config: Config): SettingValues {
  const { locality } = config;
  return {
    istiod: formatTarget(config.istiod),
    hosts: Object.fromEntries(Object.entries(config.hosts).map(([name, all]) => [name, oneOrAll(all)])),
    "ca-server": config.caServer === undefined ? null : formatTarget(config.caServer),
    plaintext: config.plaintext,
    ca: config.ca ?? null,
    token: config.token ?? null,
    mode: config.mode,
    namespace: config.namespace,
    "service-account": config.serviceAccount,
    "trust-domain": config.trustDomain,
    "trust-domain-aliases": config.trustDomainAliases,
    "certificate-life": `${config.certificateLife}s`,
    name: config.name ?? null,
    ip: config.ips,
    "service-ip": config.serviceIp ?? null,
    locality: [locality.region, locality.zone, locality.subzone].join("/").replace(/\/+$/, ""),
    "cluster-id": config.clusterId,
    network: config.network,
    "mesh-id": config.meshId,
    labels: config.labels,
    "workload-name": config.workloadName ?? null,
    "workload-group": config.workloadGroup ?? null,
    "workload-entry": config.workloadEntry ?? null,
    ports: config.ports ?? null,
    "readiness-probe": config.readinessProbe ?? null,
    "probe-localhost": config.probeLocalhost,
    metadata: config.metadata,
    unit: config.units,
    cgroup: config.cgroups,
    exclude: config.excludes.map(formatExclude),
    netns: config.netns,
    dns: config.dns,
    inbound: config.inbound,
    "enforce-established": config.enforceEstablished,
    "dns-exclude": config.dnsExcludes,
    "dns-truncate": config.dnsTruncate,
    shadow: config.shadow,
    "allow-plaintext": config.allowPlaintext,
    tunnel: config.tunnel,
    traffic: config.traffic ? "on" : "off",
    metrics: config.metrics === undefined ? null : formatTarget(config.metrics),
    "access-log": config.accessLog?.to ?? null,
    "access-log-format": config.accessLog?.format ?? "text",
    "access-log-filter": formatFilter(config.accessLog?.filter),
    "access-log-rate": String(config.accessLog?.rate ?? 1000),
    "access-log-interval": config.accessLog?.interval ? `${config.accessLog.interval}s` : null,
    "log-level": config.logLevel,
    "admin-group": config.adminGroup ?? null,
    bpffs: config.bpffs,
    "state-dir": config.stateDir,
    "run-dir": config.runDir,
  };
}
