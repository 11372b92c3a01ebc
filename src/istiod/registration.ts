/** How istiod registers this machine: what peers are told of it, and why it may not be registered. */
import { type Identity, PLAINTEXT_LABEL } from "./node.ts";

/** Kubernetes cuts no names: istiod keeps the last characters of longer ones. */
const LONGEST_NAME = 253;
/** Without it istiod takes no health of a WorkloadEntry that it did not make itself. */
const HEALTH_ANNOTATION = "proxy.istio.io/health-checks-enabled=true";

/** What of the node a registration depends on. */
export type Registrant = Pick<
  Identity,
  "namespace" | "serviceAccount" | "autoRegisterGroup" | "workloadEntry"
>;

/** The name that istiod gives the WorkloadEntry of a machine that it registers with a group. */
export function registeredName(
  node: Pick<Identity, "autoRegisterGroup" | "ips" | "network">,
): string | undefined {
  const { autoRegisterGroup, ips, network } = node;
  if (autoRegisterGroup === undefined) return undefined;
  const parts = [autoRegisterGroup, (ips[0] ?? "").replaceAll(":", "-"), ...(network ? [network] : [])];
  return parts.join("-").slice(-LONGEST_NAME);
}

/** A sentence for what istiod said; undefined when it is not about the registration. */
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
    return "it registers only who proves its identity: use istiod's TLS port (15012) with --ca and --token";
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

/** The command with which peers send plaintext to a WorkloadEntry that was applied by hand. */
export function commandsForEntry(namespace: string, entry: string): string[] {
  const [[label, value] = []] = Object.entries(PLAINTEXT_LABEL);
  return [`kubectl label workloadentry ${entry} --namespace ${namespace} --overwrite ${label}=${value}`];
}

/**
 * The commands with which istiod heeds the health of a WorkloadEntry that was applied by hand. It looks for the annotation
 * when a machine connects, and takes an annotated entry for unhealthy until it is told otherwise.
 */
export function commandsForHealth(namespace: string, entry: string): string[] {
  return [
    `kubectl annotate workloadentry ${entry} --namespace ${namespace} --overwrite ${HEALTH_ANNOTATION}`,
    "systemctl restart kmesh  # then, and here: until it connects anew, istiod leaves the machine out",
  ];
}

/** The commands that replace a WorkloadEntry which another agent registered: istiod takes it over with its labels. */
export function commandsForAnother(namespace: string, entry: string): string[] {
  return [
    `kubectl delete workloadentry ${entry} --namespace ${namespace}`,
    "systemctl restart kmesh  # then, and here: istiod makes it anew",
  ];
}
