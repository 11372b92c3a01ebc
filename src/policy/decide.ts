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
  /** The address of this machine that the peer connected to; inside HBONE the one in `:authority`. */
  destinationAddress: string;
  /** The workload's port. */
  destinationPort: number;
  /** The verified identity of the peer; absent: plaintext. */
  identity?: Identity;
}

export type DecisionReason =
  /** The port belongs to no service of this machine, so it is not governed. */
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

/** Knowledge of the peer's identity: none (plaintext), known, or not yet known (mutual TLS before its handshake). */
export type Peer = Identity | "none" | "unknown";

/** Three-valued logic (Kleene): `unknown` propagates through and, or, not. */
export type Truth = "true" | "false" | "unknown";

const TRUE_FIRST: readonly [Truth, Truth] = ["true", "false"];
const FALSE_FIRST: readonly [Truth, Truth] = ["false", "true"];

/** A condition over a connection, prepared once. */
type Predicate = (facts: Facts) => Truth;

/** An address, a class of addresses, or an unknown address. Conditions only test its membership in sets. */
export interface Place {
  isIn(set: AddressSet): Truth;
}

/** Any address. */
export const ANYWHERE: Place = { isIn: () => "unknown" };

/** The facts of a connection that conditions test. */
export interface Facts {
  source: Place;
  destination: Place;
  port: number;
  peer: Peer;
}

interface PreparedRule {
  name: string;
  id: number;
  /** Whether it tests the port. */
  byPort: boolean;
  matches: Predicate;
  /** The sets that it tests. */
  sources: readonly AddressSet[];
  destinations: readonly AddressSet[];
}

interface PreparedPolicy {
  name: string;
  ports: ReadonlySet<number> | undefined;
  rules: readonly PreparedRule[];
}

/** Decides connections by one set of policies. Immutable. */
export class Judge {
  readonly inbound: Inbound;
  readonly #ports: ReadonlySet<number>;
  readonly #rules: Ruling;

  /** Throws RangeError when a prefix is no block of addresses. */
  constructor(inbound: Inbound) {
    this.inbound = inbound;
    this.#ports = new Set(inbound.ports);
    const sets = new Map<string, AddressSet>();
    const prepared = (action: Policy["action"]) =>
      inbound.policies
        .filter((policy) => policy.action === action)
        .map((policy) => preparePolicy(policy, sets));
    this.#rules = new Ruling(prepared("deny"), prepared("allow"));
  }

  /** The policies that may match at a port. */
  rulesOf(port: number): Ruling {
    return this.#rules.narrowed(port);
  }

  /** Whether the port belongs to a service of this machine. */
  governs(port: number): boolean {
    return this.#ports.has(port);
  }

  /** Throws RangeError for an invalid address. */
  decide({ sourceAddress, destinationAddress, destinationPort, identity }: Connection): Decision {
    if (!this.governs(destinationPort)) return { allowed: true, reason: "not-governed" };
    if (!identity && mtlsOf(this.inbound, destinationPort) === "strict")
      return { allowed: false, reason: "strict" };
    return this.#rules.decide(
      factsOf(sourceAddress, destinationAddress, destinationPort, identity ?? "none"),
    );
  }

  /**
   * A refusal that is independent of the peer's identity, so that it needs no handshake; undefined without one. Throws
   * RangeError for an invalid address.
   */
  refusesAnybody(connection: Omit<Connection, "identity">): Decision | undefined {
    const { sourceAddress, destinationAddress, destinationPort } = connection;
    if (!this.governs(destinationPort)) return undefined;
    return this.#rules.refusesAnybody(factsOf(sourceAddress, destinationAddress, destinationPort, "unknown"));
  }
}

/** Policies without ports and modes. Immutable. */
export class Ruling {
  readonly #deny: readonly PreparedPolicy[];
  readonly #allow: readonly PreparedPolicy[];

  constructor(deny: readonly PreparedPolicy[], allow: readonly PreparedPolicy[]) {
    this.#deny = deny;
    this.#allow = allow;
  }

  /** Without the rules that can't match at a port. An ALLOW policy without a rule stays: it refuses. */
  narrowed(port: number): Ruling {
    const facts: Facts = { source: ANYWHERE, destination: ANYWHERE, port, peer: "unknown" };
    const narrow = (policies: readonly PreparedPolicy[]) =>
      policies
        .filter((policy) => applies(policy, facts))
        .map((policy) => ({
          ...policy,
          rules: policy.rules.filter(({ matches }) => matches(facts) !== "false"),
        }));
    return new Ruling(
      narrow(this.#deny).filter(({ rules }) => rules.length > 0),
      narrow(this.#allow),
    );
  }

  /** A key that is equal for two ports of one judge if their decisions are equal. */
  keyOf(port: number): string {
    const policies = [...this.#deny, ...this.#allow];
    const byPort = policies.some(({ rules }) => rules.some((rule) => rule.byPort));
    const ids = policies.map(({ name, rules }) => `${name}:${rules.map(({ id }) => id).join()}`);
    return `${byPort ? port : ""}|${this.#deny.length}|${ids.join(";")}`;
  }

  /** The sets of addresses in the rules. */
  get sets(): { sources: Set<AddressSet>; destinations: Set<AddressSet> } {
    const rules = [...this.#deny, ...this.#allow].flatMap((policy) => policy.rules);
    return {
      sources: new Set(rules.flatMap(({ sources }) => sources)),
      destinations: new Set(rules.flatMap(({ destinations }) => destinations)),
    };
  }

  /** DENY, then ALLOW. */
  decide(facts: Facts): Decision {
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

  /** A refusal that is independent of the identity, which must be unknown in `facts`. */
  refusesAnybody(facts: Facts): Decision | undefined {
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

/** The judge of a set, cached. Throws RangeError for an invalid prefix in the set. */
export function judgeOf(inbound: Inbound): Judge {
  const known = judges.get(inbound) ?? new Judge(inbound);
  judges.set(inbound, known);
  return known;
}

/** Decides one connection. Throws RangeError when an address is none. */
export function decide(inbound: Inbound, connection: Connection): Decision {
  return judgeOf(inbound).decide(connection);
}

/** Throws RangeError for an invalid address. */
export function factsOf(source: string, destination: string, port: number, peer: Peer): Facts {
  return { source: placeOf(source), destination: placeOf(destination), port, peer };
}

function placeOf(address: string): Place {
  const number = addressNumber(address);
  if (number === undefined) throw new RangeError(`${JSON.stringify(address)} is not an IP address`);
  const v4 = isV4(address);
  return { isIn: (set) => truthOf(set.has(number, v4)) };
}

function applies({ ports }: PreparedPolicy, { port }: Facts): boolean {
  return ports === undefined || ports.has(port);
}

/** `known` has the created sets by content, so that equal lists share one. */
function preparePolicy({ name, ports, rules }: Policy, known: Map<string, AddressSet>): PreparedPolicy {
  return {
    name,
    ports: ports && new Set(ports),
    rules: rules.map((rule) => {
      const seen = { port: false };
      const sets = { source: new Set<AddressSet>(), destination: new Set<AddressSet>() };
      const matches = prepare(rule.when, seen, ({ kind, prefixes }) => {
        const key = prefixes.join();
        const set = known.get(key) ?? new AddressSet(prefixes);
        known.set(key, set);
        sets[kind].add(set);
        return set;
      });
      return {
        name: rule.name,
        id: nextId++,
        byPort: seen.port,
        matches,
        sources: [...sets.source],
        destinations: [...sets.destination],
      };
    }),
  };
}

type Blocks = Extract<Condition, { kind: "source" | "destination" }>;

let nextId = 0;

function prepare(
  condition: Condition,
  seen: { port: boolean },
  setOf: (blocks: Blocks) => AddressSet,
): Predicate {
  switch (condition.kind) {
    case "all":
    case "any": {
      const of = condition.of.map((each) => prepare(each, seen, setOf));
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
      const of = prepare(condition.of, seen, setOf);
      return (facts) => not(of(facts));
    }
    case "source": {
      const set = setOf(condition);
      return ({ source }) => source.isIn(set);
    }
    case "destination": {
      const set = setOf(condition);
      return ({ destination }) => destination.isIn(set);
    }
    case "port":
      seen.port = true;
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
