import { discovery } from "../discovery.gen.js";
import type { ResourceType } from "./sink.ts";
import { TYPE_URL } from "./types.ts";

/** Go's gRPC servers take 4 MB a message by default: names are sent in portions below that, in characters. */
const PORTION = 1 << 20;
/** As many names a request, so that no answer is much larger than what it holds needs. */
const NAMES = 2_000;
/** An error text istiod logs; longer lists are cut, in characters. */
const REASONS = 4_000;
const INVALID_ARGUMENT = 3;
const INTERNAL = 13;
/** There is no message of this type: its requests say it all. */
const HEALTH_URL = "type.googleapis.com/istio.v1.HealthInformation";

/** A resource that was refused, and why. */
export interface Refusal {
  name: string;
  reason: string;
}

/** The first request of a type on a stream: everything there is of it. `known` are the versions by name we hold. */
export function askAll(
  type: ResourceType,
  node: discovery.Node.$Properties | undefined,
  known: ReadonlyMap<string, string>,
): Uint8Array {
  const request: discovery.DeltaDiscoveryRequest.$Properties = { typeUrl: TYPE_URL[type] };
  if (node) request.node = node;
  let size = 0;
  for (const name of known.keys()) size += name.length;
  // Left out when it grows too large: it only spares work, absence from the answer says the same.
  if (size <= PORTION) request.initialResourceVersions = Object.fromEntries(known);
  return encode(request);
}

/** The requests that subscribe to `names`. */
export function subscribe(type: ResourceType, names: readonly string[]): Uint8Array[] {
  return portions(names).map((resourceNamesSubscribe) =>
    encode({ typeUrl: TYPE_URL[type], resourceNamesSubscribe }),
  );
}

/** The requests that end the subscription to `names`. */
export function unsubscribe(type: ResourceType, names: readonly string[]): Uint8Array[] {
  return portions(names).map((resourceNamesUnsubscribe) =>
    encode({ typeUrl: TYPE_URL[type], resourceNamesUnsubscribe }),
  );
}

/** The answer to a response: ACK, or NACK when something was refused. Never carries subscriptions. */
export function acknowledge(type: ResourceType, nonce: string, refused: readonly Refusal[]): Uint8Array {
  const request: discovery.DeltaDiscoveryRequest.$Properties = {
    typeUrl: TYPE_URL[type],
    responseNonce: nonce,
  };
  if (refused.length > 0) request.errorDetail = { code: INVALID_ARGUMENT, message: listRefusals(refused) };
  return encode(request);
}

/**
 * How the application is. Never the first message of a stream, and only for an istiod that can take it: others die of it
 * (see health-reports.ts).
 */
export function formatHealth(verdict: { healthy: boolean; message: string }): Uint8Array {
  const request: discovery.DeltaDiscoveryRequest.$Properties = { typeUrl: HEALTH_URL };
  if (!verdict.healthy) request.errorDetail = { code: INTERNAL, message: shorten(verdict.message) };
  return encode(request);
}

function encode(request: discovery.DeltaDiscoveryRequest.$Properties): Uint8Array {
  return discovery.DeltaDiscoveryRequest.encode(request).finish();
}

function listRefusals(refused: readonly Refusal[]): string {
  let list = "";
  for (const [i, { name, reason }] of refused.entries()) {
    const entry = `${shorten(name)}: ${shorten(reason)}`;
    if (list.length + entry.length > REASONS) return `${list}; and ${refused.length - i} more`;
    list += (list === "" ? "" : "; ") + entry;
  }
  return list;
}

/** At most 300 characters of a text. */
export function shorten(text: string): string {
  return text.length <= 300 ? text : `${text.slice(0, 297)}...`;
}

function portions(names: readonly string[]): string[][] {
  const portions: string[][] = [];
  let portion: string[] = [];
  let size = 0;
  for (const name of names) {
    if (portion.length === NAMES || (portion.length > 0 && size + name.length > PORTION)) {
      portions.push(portion);
      portion = [];
      size = 0;
    }
    portion.push(name);
    size += name.length;
  }
  if (portion.length > 0) portions.push(portion);
  return portions;
}
