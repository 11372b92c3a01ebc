import { discovery } from "../discovery.gen.js";
import type { ResourceType } from "./sink.ts";
import { TYPE_URL } from "./types.ts";

/** gRPC servers in Go accept messages of 4 MB by default. Names are sent in portions below that, in characters. */
const PORTION = 1 << 20;
/** Most bytes of names and versions in one request. */
const MOST_KNOWN = 3_000_000;
/** Bytes of a map entry around its name and version. */
const ENTRY = 8;
/** Most names of one request; limits the size of each response. */
const NAMES = 2_000;
/** Longest error text of a NACK, which istiod logs. Longer lists are cut. In characters. */
const REASONS = 4_000;
const INVALID_ARGUMENT = 3;
const INTERNAL = 13;
/** Type URL of health reports. There is no message of this type; the request itself is the report. */
const HEALTH_URL = "type.googleapis.com/istio.v1.HealthInformation";

/** A rejected resource, and the reason. */
export interface Refusal {
  name: string;
  reason: string;
}

/**
 * Whether names and versions of so many bytes fit in a request: istiod refuses a larger one for ever. Without them istiod
 * sends everything, and what it does not send is gone.
 */
export function fits(size: number): boolean {
  return size <= MOST_KNOWN;
}

/** Bytes of a name with its version in a request, about. */
export function sizeOf(name: string, version: string): number {
  return name.length + version.length + ENTRY;
}

/**
 * The first request of a type on a stream: subscribes to all resources of it. `known` holds the versions by name that
 * kmesh has; they must fit.
 */
export function askAll(
  type: ResourceType,
  node: discovery.Node.$Properties | undefined,
  known: ReadonlyMap<string, string>,
): Uint8Array {
  const request: discovery.DeltaDiscoveryRequest.$Properties = { typeUrl: TYPE_URL[type] };
  if (node) request.node = node;
  if (known.size > 0) request.initialResourceVersions = Object.fromEntries(known);
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

/** The answer to a response: ACK, or NACK when a resource was rejected. It never carries subscriptions. */
export function acknowledge(type: ResourceType, nonce: string, refused: readonly Refusal[]): Uint8Array {
  const request: discovery.DeltaDiscoveryRequest.$Properties = {
    typeUrl: TYPE_URL[type],
    responseNonce: nonce,
  };
  if (refused.length > 0) request.errorDetail = { code: INVALID_ARGUMENT, message: listRefusals(refused) };
  return encode(request);
}

/**
 * A health report. It must not be the first message of a stream, and only an istiod that accepts reports may get it:
 * others crash (see health-reports.ts).
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

/** Cuts a text to 300 characters. */
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
