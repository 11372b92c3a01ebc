/** For tests: policies of the workload API in few words, and decisions by them. */
import type { Identity, Inbound, Policy } from "../../mesh/inbound.ts";
import { type Authorization, parseAuthorization } from "../authorization.ts";
import { type Decision, decide } from "../decide.ts";
import { security } from "../security.gen.js";

/** A policy n/p, or as the message says. */
export function authorization(message: security.Authorization.$Properties): Authorization {
  const whole = security.Authorization.create({ name: "p", namespace: "n", ...message });
  return parseAuthorization(
    `${whole.namespace}/${whole.name}`,
    security.Authorization.encode(whole).finish(),
  );
}

/** A machine with some ports, mutual TLS permissive. */
export function inbound(policies: Policy[]): Inbound {
  return { ports: [1, 80, 3306, 8080, 8081, 8181], mtls: { default: "permissive", ports: [] }, policies };
}

/** Of TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT. */
export function identity(text: string): Identity {
  const [trustDomain = "", , namespace = "", , serviceAccount = ""] = text.split("/");
  return { trustDomain, namespace, serviceAccount };
}

/** The decision about a connection of `peer` (TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT; absent: plaintext). */
export function judge(
  policies: Policy[],
  source: string,
  port: number,
  peer?: string,
  to = "10.0.1.1",
): Decision {
  const connection = { sourceAddress: source, destinationAddress: to, destinationPort: port };
  return decide(inbound(policies), peer ? { ...connection, identity: identity(peer) } : connection);
}
