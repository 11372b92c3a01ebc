/** istio.security.Authorization: the authorization policies of the workload API, and which of them govern a workload. */
import { reasonOf } from "../errors/reason.ts";
import { MalformedResource } from "../istiod/stream/sink.ts";
import { formatAddress, isV4, maskPrefix } from "../mesh/address.ts";
import { type Condition, type Inbound, MTLS_MODES, type Policy, type TextMatch } from "../mesh/inbound.ts";
import { ANYWHERE, type Facts, Judge } from "./decide.ts";
import { security } from "./security.gen.js";

export interface Authorization {
  /** NAMESPACE/NAME, as resources and workloads name it. */
  name: string;
  namespace: string;
  /** `selector` and `peer-authentication` policies govern only workloads that name them. */
  scope: "global" | "namespace" | "selector";
  /** To be shown, not enforced. */
  dryRun: boolean;
  policy: Policy;
}

const SCOPES = ["global", "namespace", "selector"] as const;
const ACTIONS = ["allow", "deny"] as const;
const LAYER_7 = "layer 7";

/**
 * Decodes one resource. `resource` is its name, NAMESPACE/NAME. Throws MalformedResource for bytes that are no such message,
 * an unknown scope or action, an address that has neither 4 nor 16 bytes, a prefix beyond its family, a port beyond
 * 65535, a text match without content, and a name that is not the message's.
 */
export function parseAuthorization(resource: string, bytes: Uint8Array): Authorization {
  try {
    return authorizationOf(resource, security.Authorization.decode(bytes));
  } catch (error) {
    if (error instanceof MalformedResource) throw error;
    throw new MalformedResource(resource, `not a valid message: ${reasonOf(error)}`);
  }
}

function authorizationOf(resource: string, message: security.Authorization): Authorization {
  const { namespace, dryRun } = message;
  const name = `${namespace}/${message.name}`;
  if (message.name === "") throw new MalformedResource(resource, "the message inside has no name");
  if (name !== resource) throw new MalformedResource(resource, `the message inside is called ${name}`);
  const scope = SCOPES[message.scope];
  if (scope === undefined)
    throw new MalformedResource(resource, `scope has the unknown value ${message.scope}`);
  const action = ACTIONS[message.action];
  if (action === undefined)
    throw new MalformedResource(resource, `action has the unknown value ${message.action}`);
  const rules = message.groups.map((group, i) => ({
    name: `rule ${i + 1}`,
    when: all((group.rules ?? []).map((each) => rulesOf(resource, each))),
  }));
  return { name, namespace, scope, dryRun, policy: { name, action, rules } };
}

/** Rules without a match match everything, as in ztunnel. */
function rulesOf(resource: string, rules: security.Rules.$Properties): Condition {
  const matches = rules.matches ?? [];
  return matches.length === 0 ? all([]) : any(matches.map((match) => matchOf(resource, match)));
}

/**
 * A match without a field is what istiod leaves of layer 7 conditions. ztunnel lets it match nothing, which turns such a
 * DENY off; here it matches in a DENY, as the API promises.
 */
function matchOf(resource: string, match: security.Match.$Properties): Condition {
  const fields: Condition[] = [];
  const add = (given: readonly unknown[] | null | undefined, condition: () => Condition, negated = false) => {
    if (!given || given.length === 0) return;
    fields.push(negated ? { kind: "not", of: condition() } : condition());
  };
  const texts = (list: readonly security.StringMatch.$Properties[] | null | undefined, strip = false) =>
    (list ?? []).map((each) => textMatchOf(resource, each, strip));
  const blocks = (list: readonly security.Block.$Properties[] | null | undefined) =>
    (list ?? []).map((each) => blockTextOf(resource, each));
  const accounts = (list: readonly security.ServiceAccountMatch.$Properties[] | null | undefined) =>
    (list ?? []).map(({ namespace, serviceAccount }) => ({
      namespace: namespace ?? "",
      name: serviceAccount ?? "",
    }));
  const ports = (list: readonly number[] | null | undefined) =>
    (list ?? []).map((port) => {
      if (port > 65535) throw new MalformedResource(resource, `a port is ${port}`);
      return { from: port, to: port };
    });
  for (const negated of [false, true]) {
    const namespaces = negated ? match.notNamespaces : match.namespaces;
    add(namespaces, () => ({ kind: "namespace", match: texts(namespaces) }), negated);
    const principals = negated ? match.notPrincipals : match.principals;
    add(principals, () => ({ kind: "principal", match: texts(principals, true) }), negated);
    const sources = negated ? match.notSourceIps : match.sourceIps;
    add(sources, () => ({ kind: "source", prefixes: blocks(sources) }), negated);
    const destinations = negated ? match.notDestinationIps : match.destinationIps;
    add(destinations, () => ({ kind: "destination", prefixes: blocks(destinations) }), negated);
    const to = negated ? match.notDestinationPorts : match.destinationPorts;
    add(to, () => ({ kind: "port", ranges: ports(to) }), negated);
    const users = negated ? match.notServiceAccounts : match.serviceAccounts;
    add(users, () => ({ kind: "service-account", accounts: accounts(users) }), negated);
  }
  if ((match.extensions?.length ?? 0) > 0) fields.push({ kind: "unknown", text: "an extension" });
  if (fields.length === 0) return { kind: "unknown", text: LAYER_7 };
  return fields.length === 1 && fields[0] ? fields[0] : all(fields);
}

function textMatchOf(
  resource: string,
  match: security.StringMatch.$Properties,
  isPrincipal: boolean,
): TextMatch {
  const { exact, prefix, suffix, presence } = match;
  const bare = (text: string) => (isPrincipal ? text.replace(/^spiffe:\/\//, "") : text);
  if (typeof exact === "string" && exact !== "") return { kind: "exact", value: bare(exact) };
  if (typeof prefix === "string" && prefix !== "") return { kind: "prefix", value: bare(prefix) };
  if (typeof suffix === "string" && suffix !== "") return { kind: "suffix", value: suffix };
  if (presence) return { kind: "presence" };
  throw new MalformedResource(resource, "a text match has no content");
}

function blockTextOf(resource: string, { address, length = 0 }: security.Block.$Properties): string {
  const bytes = address ?? new Uint8Array(0);
  if (bytes.length !== 4 && bytes.length !== 16)
    throw new MalformedResource(resource, `an address has ${bytes.length} bytes`);
  const wide = new Uint8Array(16);
  if (bytes.length === 4) wide.set([0xff, 0xff], 10);
  wide.set(bytes, 16 - bytes.length);
  const text = formatAddress(wide);
  // A v4-mapped address of 16 bytes is an IPv4 one to this machine's sockets.
  const bits = isV4(text) && bytes.length === 16 ? (length ?? 0) - 96 : (length ?? 0);
  if (bits < 0 || bits > (isV4(text) ? 32 : 128))
    throw new MalformedResource(
      resource,
      `an address of ${bytes.length} bytes has a prefix of ${length} bits`,
    );
  const prefix = maskPrefix({ address: text, length: bits });
  return `${prefix.address}/${prefix.length}`;
}

/** What of the policies governs a workload. */
export interface Selected {
  policies: Policy[];
  /** Names of policies of dry run that would govern it. */
  dryRun: string[];
  /** Names that the workload has and no policy has yet: each denies everything. */
  unknown: string[];
}

/**
 * The policies of a workload: global ones, those of its namespace, and those that it names
 * (Workload.authorization_policies). A name without a policy denies everything until the policy comes: istiod sends the
 * workload first, and ztunnel admits everybody meanwhile.
 */
export function selectPolicies(
  all: ReadonlyMap<string, Authorization>,
  workload: { namespace: string; names: readonly string[] },
): Selected {
  const selected: Selected = { policies: [], dryRun: [], unknown: [] };
  const add = ({ name, dryRun, policy }: Authorization) => {
    if (dryRun) selected.dryRun.push(name);
    else selected.policies.push(policy);
  };
  for (const each of all.values())
    if (each.scope === "global" || (each.scope === "namespace" && each.namespace === workload.namespace))
      add(each);
  for (const name of new Set(workload.names)) {
    const named = all.get(name);
    if (named?.scope === "selector") add(named);
    else if (!named) {
      selected.unknown.push(name);
      selected.policies.push(unknownPolicy(name));
    }
  }
  selected.policies.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
  return selected;
}

/** A policy that denies everything since nothing of it is known but its name. */
export function unknownPolicy(name: string): Policy {
  return {
    name,
    action: "deny",
    rules: [{ name: "the policy is not known yet", when: { kind: "all", of: [] } }],
  };
}

/**
 * The modes of mutual TLS that follow from policies of the workload API, where STRICT is a DENY of all that has no
 * identity: strict for the ports where plaintext is denied whatever its addresses, else permissive.
 */
export function mtlsOfPolicies(policies: readonly Policy[], ports: readonly number[]): Inbound["mtls"] {
  const [, permissive, strict] = MTLS_MODES;
  const converted = policies.filter(({ name }) => /\/(istio_)?converted_/.test(name));
  const judge = new Judge({ ports, mtls: { default: permissive, ports: [] }, policies: converted });
  return {
    default: permissive,
    ports: ports
      .filter((port) => !judge.rulesOf(port).decide(anybody(port)).allowed)
      .map((port) => ({ port, mode: strict })),
  };
}

/** In plaintext, from wherever. */
function anybody(port: number): Facts {
  return { source: ANYWHERE, destination: ANYWHERE, port, peer: "none" };
}

function all(of: Condition[]): Condition {
  return of.length === 1 && of[0] ? of[0] : { kind: "all", of };
}

function any(of: Condition[]): Condition {
  return of.length === 1 && of[0] ? of[0] : { kind: "any", of };
}
