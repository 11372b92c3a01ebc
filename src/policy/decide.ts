/**
 * Decides whether a connection may come in. Order (Istio's and ztunnel's): STRICT; a DENY policy that matches refuses; no
 * ALLOW policy allows; an ALLOW policy that matches allows; everything else is refused.
 *
 * A connection in plaintext has no identity: every condition on one is false, its negation true.
 */
import { isV4 } from "../mesh/address.ts";
import {
  type Condition,
  type Identity,
  type Inbound,
  mtlsOf,
  type Policy,
  principalOf,
  type TextMatch,
} from "../mesh/inbound.ts";
import { AddressSet, addressNumber } from "./address-set.ts";

export interface Connection {
  /** Canonical text of the immediate peer's address. */
  sourceAddress: string;
  /** The address of this machine that the peer asked for; inside HBONE that of `:authority`. */
  destinationAddress: string;
  /** The workload's port. */
  destinationPort: number;
  /** The verified identity of the peer; absent: plaintext. */
  identity?: Identity;
}

export type DecisionReason =
  /** The port is none of this machine's services: not our business. */
  | "not-governed"
  /** No ALLOW policy exists there, and no DENY policy matches. */
  | "no-policy"
  /** `policy` allows it. */
  | "allowed"
  /** `policy` denies it. */
  | "denied"
  /** ALLOW policies exist, and none matches. `policy` is one of them. */
  | "no-allow-matched"
  /** Plaintext where PeerAuthentication demands mutual TLS. */
  | "strict";

export interface Decision {
  allowed: boolean;
  reason: DecisionReason;
  /** Name of the policy that decided. */
  policy?: string;
  /** Name of its rule that matched. */
  rule?: string;
}

/** What is known of the peer's identity: none (plaintext), one, or not yet (mutual TLS before its handshake). */
export type Peer = Identity | "none" | "unknown";

/** Kleene's three values: what can't be known stays `unknown` through and, or, not. */
export type Truth = "true" | "false" | "unknown";

const TRUE_FIRST: readonly [Truth, Truth] = ["true", "false"];
const FALSE_FIRST: readonly [Truth, Truth] = ["false", "true"];

/** A condition over a connection, prepared once. */
type Predicate = (facts: Facts) => Truth;

/** A connection, prepared for predicates. */
interface Facts {
  source: bigint;
  sourceV4: boolean;
  destination: bigint;
  destinationV4: boolean;
  port: number;
  peer: Peer;
}

interface PreparedPolicy {
  name: string;
  ports: ReadonlySet<number> | undefined;
  rules: readonly { name: string; matches: Predicate }[];
}

/** Decides by one set of policies. Immutable. */
export class Judge {
  readonly inbound: Inbound;
  readonly #ports: ReadonlySet<number>;
  readonly #deny: readonly PreparedPolicy[];
  readonly #allow: readonly PreparedPolicy[];

  /** Throws RangeError when a prefix is no block of addresses. */
  constructor(inbound: Inbound) {
    this.inbound = inbound;
    this.#ports = new Set(inbound.ports);
    const prepared = (action: Policy["action"]) =>
      inbound.policies.filter((policy) => policy.action === action).map(preparePolicy);
    this.#deny = prepared("deny");
    this.#allow = prepared("allow");
  }

  /** Whether the port belongs to a service of this machine. */
  governs(port: number): boolean {
    return this.#ports.has(port);
  }

  /** Throws RangeError when an address is none. */
  decide({ sourceAddress, destinationAddress, destinationPort, identity }: Connection): Decision {
    if (!this.governs(destinationPort)) return { allowed: true, reason: "not-governed" };
    if (!identity && mtlsOf(this.inbound, destinationPort) === "strict")
      return { allowed: false, reason: "strict" };
    return this.byPolicies(factsOf(sourceAddress, destinationAddress, destinationPort, identity ?? "none"));
  }

  /**
   * A refusal that holds whatever identity the peer may prove, so that it needs no handshake; undefined when there is
   * none. Throws RangeError when an address is none.
   */
  refusesAnybody(connection: Omit<Connection, "identity">): Decision | undefined {
    const { sourceAddress, destinationAddress, destinationPort } = connection;
    if (!this.governs(destinationPort)) return undefined;
    return this.forAnybody(factsOf(sourceAddress, destinationAddress, destinationPort, "unknown"));
  }

  /** Policies alone. */
  byPolicies(facts: Facts): Decision {
    for (const policy of this.#deny) {
      if (!applies(policy, facts)) continue;
      const rule = policy.rules.find(({ matches }) => matches(facts) !== "false");
      if (rule) return { allowed: false, reason: "denied", policy: policy.name, rule: rule.name };
    }
    let unmatched: PreparedPolicy | undefined;
    for (const policy of this.#allow) {
      if (!applies(policy, facts)) continue;
      unmatched ??= policy;
      const rule = policy.rules.find(({ matches }) => matches(facts) === "true");
      if (rule) return { allowed: true, reason: "allowed", policy: policy.name, rule: rule.name };
    }
    if (unmatched) return { allowed: false, reason: "no-allow-matched", policy: unmatched.name };
    return { allowed: true, reason: "no-policy" };
  }

  /** `facts.peer` is unknown. */
  forAnybody(facts: Facts): Decision | undefined {
    for (const policy of this.#deny) {
      if (!applies(policy, facts)) continue;
      const rule = policy.rules.find(({ matches }) => matches(facts) === "true");
      if (rule) return { allowed: false, reason: "denied", policy: policy.name, rule: rule.name };
    }
    const allowing = this.#allow.filter((policy) => applies(policy, facts));
    const [first] = allowing;
    if (!first) return undefined;
    const possible = allowing.some(({ rules }) => rules.some(({ matches }) => matches(facts) !== "false"));
    return possible ? undefined : { allowed: false, reason: "no-allow-matched", policy: first.name };
  }
}

const judges = new WeakMap<Inbound, Judge>();

/** The judge of a set, made once. Throws RangeError when the set has a prefix that is no block of addresses. */
export function judgeOf(inbound: Inbound): Judge {
  const known = judges.get(inbound) ?? new Judge(inbound);
  judges.set(inbound, known);
  return known;
}

/** Decides one connection. Throws RangeError when an address is none. */
export function decide(inbound: Inbound, connection: Connection): Decision {
  return judgeOf(inbound).decide(connection);
}

/** Throws RangeError when an address is none. */
export function factsOf(source: string, destination: string, port: number, peer: Peer): Facts {
  return {
    source: numberOf(source),
    sourceV4: isV4(source),
    destination: numberOf(destination),
    destinationV4: isV4(destination),
    port,
    peer,
  };
}

function numberOf(address: string): bigint {
  const number = addressNumber(address);
  if (number === undefined) throw new RangeError(`${JSON.stringify(address)} is no IP address`);
  return number;
}

function applies({ ports }: PreparedPolicy, { port }: Facts): boolean {
  return ports === undefined || ports.has(port);
}

function preparePolicy({ name, ports, rules }: Policy): PreparedPolicy {
  return {
    name,
    ports: ports && new Set(ports),
    rules: rules.map((rule) => ({ name: rule.name, matches: prepare(rule.when) })),
  };
}

function prepare(condition: Condition): Predicate {
  switch (condition.kind) {
    case "all":
    case "any": {
      const of = condition.of.map(prepare);
      const [decisive, neutral] = condition.kind === "all" ? FALSE_FIRST : TRUE_FIRST;
      return (facts) => {
        let result: Truth = neutral;
        for (const each of of) {
          const truth = each(facts);
          if (truth === decisive) return decisive;
          if (truth === "unknown") result = "unknown";
        }
        return result;
      };
    }
    case "not": {
      const of = prepare(condition.of);
      return (facts) => not(of(facts));
    }
    case "source": {
      const set = new AddressSet(condition.prefixes);
      return ({ source, sourceV4 }) => truthOf(set.has(source, sourceV4));
    }
    case "destination": {
      const set = new AddressSet(condition.prefixes);
      return ({ destination, destinationV4 }) => truthOf(set.has(destination, destinationV4));
    }
    case "port":
      return ({ port }) => truthOf(condition.ranges.some(({ from, to }) => port >= from && port <= to));
    case "principal":
      return ofIdentity((identity) => matchesText(condition.match, principalOf(identity)));
    case "namespace":
      return ofIdentity(({ namespace }) => matchesText(condition.match, namespace));
    case "service-account":
      return ofIdentity(({ namespace, serviceAccount }) =>
        condition.accounts.some((each) => each.namespace === namespace && each.name === serviceAccount),
      );
    case "unknown":
      return () => "unknown";
  }
}

function ofIdentity(matches: (identity: Identity) => boolean): Predicate {
  return ({ peer }) => {
    if (peer === "unknown") return "unknown";
    return truthOf(peer !== "none" && matches(peer));
  };
}

function matchesText(patterns: readonly TextMatch[], text: string): boolean {
  return patterns.some((pattern) => {
    if (pattern.kind === "presence") return text !== "";
    if (pattern.kind === "prefix") return text.startsWith(pattern.value);
    if (pattern.kind === "suffix") return text.endsWith(pattern.value);
    return text === pattern.value;
  });
}

function truthOf(value: boolean): Truth {
  return value ? "true" : "false";
}

function not(truth: Truth): Truth {
  if (truth === "unknown") return truth;
  return truth === "true" ? "false" : "true";
}
