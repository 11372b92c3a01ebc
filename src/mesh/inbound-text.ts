/** Inbound as text (JSON): for the snapshot, and for those who read the pinned policies. */
import { canonicalAddress, parsePrefix } from "./address.ts";
import { type Condition, type Inbound, MTLS_MODES, type Policy, type TextMatch } from "./inbound.ts";

/** Deepest nesting of conditions that is read. */
const DEEPEST = 64;

/** Equal for what is equal: the order of members does not count, that of lists does. */
export function inboundText(inbound: Inbound): string {
  return JSON.stringify(inbound, (_, value: unknown) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
    return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
  });
}

/** Reads what `inboundText` wrote. Throws RangeError for any other text. */
export function parseInbound(text: string): Inbound {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new RangeError("the inbound policies are no JSON");
  }
  const { ports, mtls, policies, trustDomains } = record(value, "inbound");
  const modes = record(mtls, "mtls");
  return {
    ports: list(ports, "ports").map(portOf),
    mtls: {
      default: oneOf(MTLS_MODES, modes.default),
      ports: list(modes.ports, "ports of mtls").map((each) => {
        const { port, mode } = record(each, "a port of mtls");
        return { port: portOf(port), mode: oneOf(MTLS_MODES, mode) };
      }),
    },
    policies: list(policies, "policies").map(policyOf),
    ...(trustDomains === undefined ? {} : { trustDomains: list(trustDomains, "trust domains").map(textOf) }),
  };
}

function policyOf(value: unknown): Policy {
  const { name, action, ports, rules } = record(value, "a policy");
  return {
    name: textOf(name),
    action: oneOf(["allow", "deny"], action),
    ...(ports === undefined ? {} : { ports: list(ports, "ports of a policy").map(portOf) }),
    rules: list(rules, "rules").map((each) => {
      const rule = record(each, "a rule");
      return { name: textOf(rule.name), when: conditionOf(rule.when, 0) };
    }),
  };
}

function conditionOf(value: unknown, depth: number): Condition {
  if (depth > DEEPEST) throw new RangeError("conditions are nested too deeply");
  const condition = record(value, "a condition");
  const kind = textOf(condition.kind);
  switch (kind) {
    case "all":
    case "any":
      return { kind, of: list(condition.of, kind).map((each) => conditionOf(each, depth + 1)) };
    case "not":
      return { kind, of: conditionOf(condition.of, depth + 1) };
    case "source":
    case "destination":
      return { kind, prefixes: list(condition.prefixes, kind).map(prefixOf) };
    case "port":
      return {
        kind,
        ranges: list(condition.ranges, kind).map((each) => {
          const { from, to } = record(each, "a range");
          return { from: portOf(from), to: portOf(to) };
        }),
      };
    case "principal":
    case "namespace":
      return { kind, match: list(condition.match, kind).map(matchOf) };
    case "service-account":
      return {
        kind,
        accounts: list(condition.accounts, kind).map((each) => {
          const { namespace, name } = record(each, "an account");
          return { namespace: textOf(namespace), name: textOf(name) };
        }),
      };
    case "unknown":
      return { kind, text: textOf(condition.text) };
    default:
      throw new RangeError(`a condition has the kind ${JSON.stringify(kind)}`);
  }
}

function matchOf(value: unknown): TextMatch {
  const match = record(value, "a match");
  const kind = oneOf(["exact", "prefix", "suffix", "presence"], match.kind);
  return kind === "presence" ? { kind } : { kind, value: textOf(match.value) };
}

function prefixOf(value: unknown): string {
  const text = textOf(value);
  const prefix = parsePrefix(text);
  if (!prefix || canonicalAddress(prefix.address) !== prefix.address)
    throw new RangeError(`${JSON.stringify(text)} is not a block of addresses`);
  return text;
}

function portOf(value: unknown): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > 65535)
    throw new RangeError(`${JSON.stringify(value)} is not a port`);
  return value;
}

function textOf(value: unknown): string {
  if (typeof value !== "string") throw new RangeError(`${JSON.stringify(value)} is not a text`);
  return value;
}

function oneOf<T extends string>(choices: readonly T[], value: unknown): T {
  const choice = choices.find((each) => each === value);
  if (choice === undefined) throw new RangeError(`${JSON.stringify(value)} is none of ${choices.join(", ")}`);
  return choice;
}

function list(value: unknown, what: string): unknown[] {
  if (!Array.isArray(value)) throw new RangeError(`${what} is not a list`);
  return value;
}

function record(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new RangeError(`${what} is no object`);
  return value as Record<string, unknown>;
}
