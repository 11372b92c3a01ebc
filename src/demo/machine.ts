/**
 * The machine that asks, as the workload API has it: a service of its own ports, its workload, and the policies that
 * istiod makes of PeerAuthentication and AuthorizationPolicy. Kernel-native mode gets the same as `virtualInbound`.
 */
import { workload } from "../dual-engine/records/workload.gen.js";
import { parsePrefix } from "../mesh/address.ts";
import { security } from "../policy/security.gen.js";
import type { DemoInbound } from "./services.ts";
import { bytesOf, CLUSTER, NAMESPACE, type Resource } from "./workloads.ts";

const HOST = "machine.demo";
const STRICT = "converted_peer_authentication_machine";
/** Authorization.scope and action. */
const SCOPE = { namespace: 1, selector: 2 } as const;
const DENY = 1;

/** The Address resources. istiod knows no mode DISABLE here: it is the same as PERMISSIVE. */
export function machineAddresses(addresses: readonly string[], inbound: readonly DemoInbound[]): Resource[] {
  const key = `${NAMESPACE}/${HOST}`;
  const uid = `${CLUSTER}/networking.istio.io/WorkloadEntry/${NAMESPACE}/machine`;
  const ports = inbound.map(({ port }) => ({ servicePort: port, targetPort: port }));
  const service = { name: "machine", namespace: NAMESPACE, hostname: HOST, ports, canonical: true };
  const own: workload.Workload.$Properties = {
    ...{ uid, name: "machine", namespace: NAMESPACE, clusterId: CLUSTER, workloadName: "machine" },
    addresses: addresses.map(bytesOf),
    services: { [key]: { ports } },
    ...(strictPorts(inbound).length > 0 && { authorizationPolicies: [`${NAMESPACE}/${STRICT}`] }),
  };
  return [
    [key, workload.Address.encode({ service }).finish()],
    [uid, workload.Address.encode({ workload: own }).finish()],
  ];
}

/** The Authorization resources. */
export function machinePolicies(inbound: readonly DemoInbound[]): Resource[] {
  const strict = strictPorts(inbound);
  const policies = inbound.flatMap(({ port, deny = [] }) => {
    const match = { sourceIps: deny.map(blockOf), destinationPorts: [port] };
    return deny.length > 0 ? [policyOf(`deny-${port}`, SCOPE.namespace, match)] : [];
  });
  if (strict.length === 0) return policies;
  const match = { notPrincipals: [{ presence: {} }], destinationPorts: strict };
  return [...policies, policyOf(STRICT, SCOPE.selector, match)];
}

function policyOf(name: string, scope: number, match: security.Match.$Properties): Resource {
  const groups = [{ rules: [{ matches: [match] }] }];
  const message = { name, namespace: NAMESPACE, scope, action: DENY, groups };
  return [`${NAMESPACE}/${name}`, security.Authorization.encode(message).finish()];
}

function strictPorts(inbound: readonly DemoInbound[]): number[] {
  return inbound.flatMap(({ port, mtls }) => (mtls === "strict" ? [port] : []));
}

function blockOf(block: string): security.Block.$Properties {
  const { address = block, length = 0 } = parsePrefix(block) ?? {};
  return { address: bytesOf(address), length };
}
