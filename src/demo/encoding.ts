/** Builds protobuf bytes from encoded parts, because ten thousand services change one at a time. */
import { Writer } from "protobufjs/minimal.js";
import type { ResourceType } from "../istiod/stream/sink.ts";
import { TYPE_URL } from "../istiod/stream/types.ts";
import type { envoy } from "../kernel-native/resources/envoy.gen.js";
import { hash53 } from "../runtime/hash.ts";

const WIRE_BYTES = 2;
const tag = (field: number) => (field << 3) | WIRE_BYTES;

/** One resource. */
export interface Encoded {
  /** Resource.version, which istiod sets for services and workloads only. */
  version: string;
  /** The resource's own bytes. */
  value: Uint8Array;
  /** The same as an entry of DeltaDiscoveryResponse.resources, its tag included. */
  entry: Uint8Array;
}

/** A google.protobuf.Any of a message type, by its full name. */
export function any(type: string, value: Uint8Array): envoy.Any.$Properties {
  return { typeUrl: `type.googleapis.com/${type}`, value };
}

/** Resource.version 1, resource 2 { Any.type_url 1, Any.value 2 }, name 3, within field 2 of the response. */
export function encodeEntry(type: ResourceType, name: string, value: Uint8Array, version = ""): Uint8Array {
  const body = new Writer().uint32(tag(1)).string(TYPE_URL[type]).uint32(tag(2)).bytes(value).finish();
  const resource = new Writer();
  if (version !== "") resource.uint32(tag(1)).string(version);
  resource.uint32(tag(2)).bytes(body);
  if (name !== "") resource.uint32(tag(3)).string(name);
  return new Writer().uint32(tag(2)).bytes(resource.finish()).finish();
}

/** A whole DeltaDiscoveryResponse. */
export function encodeResponse(
  type: ResourceType,
  version: string,
  nonce: string,
  entries: readonly Uint8Array[],
  removed: readonly string[],
): Buffer {
  const head = new Writer().uint32(tag(1)).string(version).finish();
  const tail = new Writer().uint32(tag(4)).string(TYPE_URL[type]).uint32(tag(5)).string(nonce);
  for (const name of removed) tail.uint32(tag(6)).string(name);
  return Buffer.concat([head, ...entries, tail.finish()]);
}

/** The resources of one type. Unchanged resources keep their objects. */
export class Bytes {
  readonly map = new Map<string, Encoded>();
  readonly #type: ResourceType;
  readonly #before: ReadonlyMap<string, Encoded> | undefined;

  constructor(type: ResourceType, before: ReadonlyMap<string, Encoded> | undefined) {
    this.#type = type;
    this.#before = before;
  }

  set(name: string, value: Uint8Array): void {
    const known = this.#before?.get(name);
    const same = known && (known.value === value || Buffer.compare(known.value, value) === 0);
    if (same) {
      this.map.set(name, known);
      return;
    }
    const version = this.#type === "address" ? hash53(value).toString(16).padStart(16, "0") : "";
    this.map.set(name, { value, version, entry: encodeEntry(this.#type, name, value, version) });
  }

  /** A message of length-delimited fields (by number) followed by encoded fields. */
  static message(fields: Record<number, string | readonly Uint8Array[]>, rest: Uint8Array): Uint8Array {
    const writer = new Writer();
    for (const [field, value] of Object.entries(fields)) {
      if (typeof value === "string") writer.uint32(tag(Number(field))).string(value);
      else for (const item of value) writer.uint32(tag(Number(field))).bytes(item);
    }
    return Buffer.concat([writer.finish(), rest]);
  }
}
