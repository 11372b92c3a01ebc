/** Who may connect to this machine, from its own workload and the policies. */
import type { Inbound } from "../mesh/inbound.ts";
import { mtlsOfPolicies, selectPolicies } from "../policy/authorization.ts";
import { withTrustDomains } from "../policy/trust-domains.ts";
import type { Store } from "./store/store.ts";

export interface CompiledInbound {
  inbound: Inbound;
  /** Policies of dry run: shown, not enforced. */
  dryRun: readonly string[];
  /** Policies that the workload names and istiod has not sent: each denies everything. */
  unknown: readonly string[];
}

/**
 * Undefined when istiod has no workload of this machine: it is no server of the mesh. `trustDomains`: the mesh's, and its
 * aliases.
 */
export function compileInbound(
  { own, authorizations }: Pick<Store, "own" | "authorizations">,
  trustDomains: readonly [string, ...string[]],
): CompiledInbound | undefined {
  if (!own) return undefined;
  const { namespace, policies: names } = own.profile;
  const { policies, dryRun, unknown } = selectPolicies(authorizations, { namespace, names });
  const targets = own.bindings.flatMap(({ ports }) => ports.map(({ service, target }) => target || service));
  const ports = [...new Set(targets)].sort((a, b) => a - b);
  const [, ...aliases] = trustDomains;
  const inbound = {
    ports,
    mtls: mtlsOfPolicies(policies, ports),
    policies: policies.map((policy) => withTrustDomains(policy, trustDomains)),
    ...(aliases.length > 0 && { trustDomains: aliases }),
  };
  return { inbound, dryRun, unknown };
}
