/** Converts istioctl's files to settings. */
import type { Membership } from "../istiod/join/membership.ts";
import type { Json } from "../istiod/node.ts";
import { formatTarget } from "../istiod/target.ts";
import type { SettingName } from "./settings.ts";
import { oneOrAll } from "./values.ts";

/** The settings in the files; undefined removes a setting. */
export type DecidedSettings = Partial<Record<SettingName, Json | undefined>>;

/** `ca` and `token` are the paths of the copied roots and token. */
export function settingsOf(member: Membership, kept: { ca: string; token: string }): DecidedSettings {
  const { id, istiod, ca } = member;
  const sameServer = formatTarget(ca) === formatTarget(istiod);
  return {
    istiod: formatTarget(istiod),
    ...stated(
      "hosts",
      filled(Object.fromEntries([...member.hosts].map(([name, all]) => [name, oneOrAll(all)]))),
    ),
    "ca-server": sameServer ? undefined : formatTarget(ca),
    plaintext: undefined,
    ca: kept.ca,
    token: kept.token,
    namespace: id.namespace,
    "service-account": id.serviceAccount,
    "trust-domain": id.trustDomain,
    // Without a value in the files, the operator's setting stays.
    ...stated("name", member.name),
    ...stated("service-ip", member.serviceIp),
    "cluster-id": member.clusterId,
    network: member.network || undefined,
    "mesh-id": member.meshId || undefined,
    labels: filled(member.labels),
    "workload-name": member.workloadName,
    "workload-group": member.autoRegisterGroup,
    // An existing WorkloadEntry is named by the operator, and only when istiod does not create one.
    ...(member.autoRegisterGroup === undefined ? {} : { "workload-entry": undefined }),
    ports: member.ports,
    "readiness-probe": member.readinessProbe,
    ...stated("probe-localhost", member.probeLocalhost || undefined),
    ...stated("metadata", filled(member.metadata)),
  };
}

function stated(name: SettingName, value: Json | undefined): DecidedSettings {
  return value === undefined ? {} : { [name]: value };
}

function filled<T>(map: Readonly<Record<string, T>>): Readonly<Record<string, T>> | undefined {
  return Object.keys(map).length > 0 ? map : undefined;
}
