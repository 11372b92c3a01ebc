/** How istiod registers this machine, and why it may refuse to. */
import { type Identity, TLS_LABEL, TUNNEL_LABEL, type TunnelReach, UNREACHED } from "./node.ts";

/** Kubernetes rejects longer names. istiod keeps the last 253 characters. */
const LONGEST_NAME = 253;
/** Without this annotation istiod accepts no health reports for a WorkloadEntry that it did not make itself. */
const HEALTH_ANNOTATION = "proxy.istio.io/health-checks-enabled=true";

/** The fields of the node on which a registration depends. */
export type Registrant = Pick<
  Identity,
  "namespace" | "serviceAccount" | "autoRegisterGroup" | "workloadEntry"
>;

/** How istiod registers this machine. */
export interface Registration {
  namespace: string;
  /** The WorkloadEntry's name. */
  entry: string;
  /** The address at which peers reach this machine. */
  address: string;
  /** The WorkloadGroup from which istiod makes the entry. */
  group?: string;
  /** How peers can reach the tunnel, as istiod was told; absent from an agent of an earlier version. */
  reach?: TunnelReach;
  /** Commands for an administrator when peers send something else: the entry existed before, or is another agent's. */
  needs: string[];
  /** Commands that make istiod accept health reports for an entry that existed before. */
  healthNeeds?: string[];
}

/** The registration of `node`; undefined without a WorkloadGroup and a WorkloadEntry. */
export function registrationOf(node: Identity): Registration | undefined {
  const { namespace, autoRegisterGroup: group, workloadEntry, proxyConfig, ips } = node;
  const entry = group === undefined ? workloadEntry : registeredName(node);
  if (entry === undefined) return undefined;
  return {
    namespace,
    entry,
    address: ips[0] ?? "",
    ...(group === undefined ? {} : { group }),
    ...(node.reach ? { reach: node.reach } : {}),
    needs:
      group === undefined
        ? commandsForEntry(namespace, entry, node.reach)
        : commandsForAnother(namespace, entry),
    ...(group === undefined && proxyConfig !== undefined
      ? { healthNeeds: commandsForHealth(namespace, entry) }
      : {}),
  };
}

/**
 * The name of the WorkloadEntry that istiod makes for a machine of a group; undefined without a group. Source: istio
 * pilot/pkg/autoregistration.
 */
export function registeredName(
  node: Pick<Identity, "autoRegisterGroup" | "ips" | "network">,
): string | undefined {
  const { autoRegisterGroup, ips, network } = node;
  if (autoRegisterGroup === undefined) return undefined;
  const parts = [autoRegisterGroup, (ips[0] ?? "").replaceAll(":", "-"), ...(network ? [network] : [])];
  return parts.join("-").slice(-LONGEST_NAME);
}

/** Explains istiod's error text; undefined when it does not concern the registration. */
export function explainRegistration(details: string, node: Registrant): string | undefined {
  const { namespace, serviceAccount = "default", autoRegisterGroup: group, workloadEntry: entry } = node;
  if (/cannot find WorkloadGroup/.test(details)) {
    return (
      `there is no WorkloadGroup ${group} in namespace ${namespace}: make it with ` +
      `istioctl x workload group create --name ${group} --namespace ${namespace} --serviceAccount ${serviceAccount} | kubectl apply -f -, ` +
      "or name another with --workload-group"
    );
  }
  if (/existing WorkloadEntry/.test(details)) {
    return (
      `there is no WorkloadEntry ${entry} in namespace ${namespace}: apply it, or have istiod make one ` +
      "with --workload-group instead of --workload-entry"
    );
  }
  if (/requires a verified identity/.test(details))
    return "it registers only authenticated machines: use istiod's TLS port (15012) with --ca and --token";
  const [, what, ours, theirs] =
    /(namespace|service account) mismatch: "([^"]*)" vs "([^"]*)"/.exec(details) ?? [];
  if (what === undefined) return undefined;
  const object = entry === undefined ? `WorkloadGroup ${group}` : `WorkloadEntry ${entry}`;
  const field = entry === undefined ? "spec.template.serviceAccount" : "spec.serviceAccount";
  return what === "namespace"
    ? `the ${object} is in namespace ${theirs}, and this machine is of namespace ${ours}: both must be the same`
    : `the ${object} is for service account ${theirs}, and this machine is ${ours}: set ${field} there to ${ours}, ` +
        `or --service-account to ${theirs} with a token of ${theirs}`;
}

/** The commands that make peers send what this machine takes to a WorkloadEntry that an operator applied. */
export function commandsForEntry(
  namespace: string,
  entry: string,
  { hbone, mtls }: TunnelReach = UNREACHED,
): string[] {
  const labels = [
    `${TLS_LABEL}=${mtls ? "istio" : "disabled"}`,
    hbone ? `${TUNNEL_LABEL}=http` : `${TUNNEL_LABEL}-`,
  ];
  return [`kubectl label workloadentry ${entry} --namespace ${namespace} --overwrite ${labels.join(" ")}`];
}

/**
 * The commands that make istiod accept health reports for a WorkloadEntry that an operator applied. istiod looks for
 * the annotation when a machine connects, and counts an annotated entry as unhealthy until the first report.
 */
export function commandsForHealth(namespace: string, entry: string): string[] {
  return [
    `kubectl annotate workloadentry ${entry} --namespace ${namespace} --overwrite ${HEALTH_ANNOTATION}`,
    "systemctl restart kmesh  # then, on this machine: istiod counts it as unhealthy until it connects again",
  ];
}

/**
 * The commands that replace a WorkloadEntry which another agent registered. istiod then makes one with this machine's
 * labels.
 */
export function commandsForAnother(namespace: string, entry: string): string[] {
  return [
    `kubectl delete workloadentry ${entry} --namespace ${namespace}`,
    "systemctl restart kmesh  # then, on this machine: istiod makes a new entry",
  ];
}

/** How peers see this machine, as far as istiod shows it: services by what is sent. */
export interface SeenByPeers {
  plaintext: readonly string[];
  /** Absent: not known. The workload API does not say it. */
  mtls?: readonly string[] | undefined;
  /** Absent from an agent of an earlier version. */
  hbone?: readonly string[];
}

/**
 * What peers send that this machine does not take (`unserved`), and what it takes and peers do not send (`unused`). Both
 * mean that the labels of its entry are not those of its tunnel.
 */
export function differencesOf(
  { mtls, hbone = [], plaintext }: SeenByPeers,
  reach: TunnelReach = UNREACHED,
): { unserved: ("mTLS" | "HBONE")[]; unused: ("mTLS" | "HBONE")[] } {
  const isSeen = [mtls ?? [], hbone, plaintext].some((services) => services.length > 0);
  const sentMtls = mtls && mtls.length > 0;
  const ways = [
    ["mTLS", sentMtls, reach.mtls],
    ["HBONE", hbone.length > 0, reach.hbone],
  ] as const;
  return {
    unserved: ways.flatMap(([way, sent, taken]) => (sent && !taken ? [way] : [])),
    // Of both, sidecars are told of mTLS alone (PILOT_PREFER_SENDING_HBONE is off by default).
    unused:
      !isSeen || sentMtls ? [] : ways.flatMap(([way, sent, taken]) => (sent === false && taken ? [way] : [])),
  };
}
