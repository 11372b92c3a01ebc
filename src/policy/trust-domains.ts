/**
 * Aliases of the mesh's trust domain (MeshConfig's trustDomainAliases). For sidecars istiod writes them into every policy and
 * identity; the workload API has neither them nor what follows from them.
 */
import type { Condition, Policy, TextMatch } from "../mesh/inbound.ts";

/** In a policy it stands for the mesh's trust domain, whatever that is called. */
const LOCAL = "cluster.local";

/**
 * The policy as istiod writes it for a sidecar: a principal of one of the mesh's trust domains, or of cluster.local, is one of
 * each of them. `domains`: the mesh's trust domain and its aliases. Gives the same object when nothing changes.
 */
export function withTrustDomains(policy: Policy, domains: readonly string[]): Policy {
  if (domains.length === 1 && domains[0] === LOCAL) return policy;
  let changed = false;
  const rules = policy.rules.map((rule) => {
    const when = expanded(rule.when, domains);
    if (when === rule.when) return rule;
    changed = true;
    return { ...rule, when };
  });
  return changed ? { ...policy, rules } : policy;
}

function expanded(condition: Condition, domains: readonly string[]): Condition {
  switch (condition.kind) {
    case "all":
    case "any": {
      const of = condition.of.map((each) => expanded(each, domains));
      return of.every((each, i) => each === condition.of[i]) ? condition : { kind: condition.kind, of };
    }
    case "not": {
      const of = expanded(condition.of, domains);
      return of === condition.of ? condition : { kind: "not", of };
    }
    case "principal": {
      const match = condition.match.flatMap((each) => matchesOf(each, domains));
      return match.every((each, i) => each === condition.match[i]) ? condition : { kind: "principal", match };
    }
    default:
      return condition;
  }
}

/** A principal that is not TRUST-DOMAIN/ns/NS/sa/ACCOUNT, or of any trust domain, stays as it is. */
function matchesOf(match: TextMatch, domains: readonly string[]): TextMatch[] {
  if (match.kind === "presence") return [match];
  const [domain = "", ...rest] = match.value.split("/");
  if (rest.length !== 4 || domain === "") return [match];
  // `*-mesh/ns/..` is the end of a text, so its trust domain is the end of one, too.
  const fits = (name: string) => (match.kind === "suffix" ? name.endsWith(domain) : name === domain);
  if (![LOCAL, ...domains].some(fits)) return [match];
  const others = domains.filter((name) => !fits(name));
  if (others.length === domains.length) return others.map((name) => replaced(match, name, rest));
  return [match, ...others.map((name) => replaced(match, name, rest))];
}

function replaced(
  match: Exclude<TextMatch, { kind: "presence" }>,
  domain: string,
  rest: string[],
): TextMatch {
  return { kind: match.kind === "prefix" ? "prefix" : "exact", value: [domain, ...rest].join("/") };
}

/** The SPIFFE ids, and each under each alias. What is no SPIFFE id stays alone. */
export function withAliases(identities: Iterable<string>, aliases: readonly string[]): string[] {
  const all = new Set<string>();
  for (const id of identities) {
    all.add(id);
    const [, rest] = /^spiffe:\/\/[^/]+(\/.*)$/.exec(id) ?? [];
    if (rest !== undefined) for (const alias of aliases) all.add(`spiffe://${alias}${rest}`);
  }
  return [...all];
}
