/**
 * Reads a DeltaDiscoveryResponse (proto/discovery.proto) without decoding it as a whole. A response may hold ten
 * thousand resources, most of them unchanged. Generated code would keep all decoded resources alive at once.
 */

import { Reader } from "protobufjs/minimal.js";
import { reasonOf } from "../../errors/reason.ts";
import { isText } from "./bytes.ts";

/** A response without its resources. */
export interface Envelope {
  version: string;
  typeUrl: string;
  nonce: string;
  removed: string[];
  /** Number of resources. */
  resources: number;
}

/** One resource. `bytes` points into the response and is valid during the visit only. */
export interface RawResource {
  name: string;
  version: string;
  typeUrl: string;
  bytes: Uint8Array;
}

const WIRE_BYTES = 2;
/** Tags (field number, wire type) of DeltaDiscoveryResponse, Resource and Any. */
const tag = (field: number) => (field << 3) | WIRE_BYTES;
const VERSION = tag(1);
const RESOURCES = tag(2);
const TYPE_URL = tag(4);
const NONCE = tag(5);
const REMOVED = tag(6);
const RESOURCE_VERSION = tag(1);
const RESOURCE_ANY = tag(2);
const RESOURCE_NAME = tag(3);
const ANY_TYPE_URL = tag(1);
const ANY_VALUE = tag(2);

const EMPTY = new Uint8Array(0);

/** Reads the envelope and checks the outer framing. Throws RangeError or Error when the framing is broken. */
export function readEnvelope(message: Uint8Array): Envelope {
  const reader = Reader.create(message);
  const envelope: Envelope = { version: "", typeUrl: "", nonce: "", removed: [], resources: 0 };
  while (reader.pos < reader.len) {
    const key = reader.uint32();
    if (key === RESOURCES) {
      reader.pos = boundedEnd(reader, reader.len);
      envelope.resources++;
    } else if (key === VERSION) envelope.version = reader.string();
    else if (key === TYPE_URL) envelope.typeUrl = reader.string();
    else if (key === NONCE) envelope.nonce = reader.string();
    else if (key === REMOVED) envelope.removed.push(reader.string());
    else reader.skipType(key & 7);
  }
  return envelope;
}

/**
 * Calls `visit` for each resource in order. Calls `broken` with the index and the reason for a resource whose own
 * framing is broken. The object passed to `visit` is reused. Needs a message that `readEnvelope` accepted.
 */
export function eachResource(
  message: Uint8Array,
  visit: (resource: RawResource) => void,
  broken: (index: number, reason: string) => void,
): void {
  const reader = Reader.create(message);
  const resource: RawResource = { name: "", version: "", typeUrl: "", bytes: EMPTY };
  let index = 0;
  while (reader.pos < reader.len) {
    const key = reader.uint32();
    if (key !== RESOURCES) {
      reader.skipType(key & 7);
      continue;
    }
    const end = boundedEnd(reader, reader.len);
    const failure = readResource(reader, end, message, resource);
    reader.pos = end;
    if (failure === undefined) visit(resource);
    else broken(index, failure);
    index++;
  }
}

/** Fills `resource` from the reader's position up to `end`. Gives the reason when that fails, else undefined. */
function readResource(
  reader: Reader,
  end: number,
  message: Uint8Array,
  resource: RawResource,
): string | undefined {
  resource.name = "";
  resource.version = "";
  resource.typeUrl = "";
  resource.bytes = EMPTY;
  try {
    while (reader.pos < end) {
      const key = reader.uint32();
      if (key === RESOURCE_NAME) resource.name = reader.string();
      else if (key === RESOURCE_VERSION) resource.version = reader.string();
      else if (key === RESOURCE_ANY) {
        const anyEnd = boundedEnd(reader, end);
        readAny(reader, anyEnd, message, resource);
      } else reader.skipType(key & 7);
    }
    return reader.pos === end ? undefined : "a field runs over the resource's end";
  } catch (error) {
    return reasonOf(error);
  }
}

function readAny(reader: Reader, end: number, message: Uint8Array, resource: RawResource): void {
  while (reader.pos < end) {
    const key = reader.uint32();
    if (key === ANY_TYPE_URL) resource.typeUrl = readTypeUrl(reader, message);
    else if (key === ANY_VALUE) {
      const valueEnd = boundedEnd(reader, end);
      // A part of a Buffer would be a Buffer, which takes twice as long to make.
      resource.bytes = new Uint8Array(message.buffer, message.byteOffset + reader.pos, valueEnd - reader.pos);
      reader.pos = valueEnd;
    } else reader.skipType(key & 7);
  }
  if (reader.pos !== end) throw new RangeError("a field runs over its message's end");
}

/** All resources of a response have the same. */
let lastTypeUrl = "";

function readTypeUrl(reader: Reader, message: Uint8Array): string {
  const at = reader.pos;
  const end = reader.uint32() + reader.pos;
  if (isText(lastTypeUrl, message, reader.pos, end)) reader.pos = end;
  else {
    reader.pos = at;
    lastTypeUrl = reader.string();
  }
  return lastTypeUrl;
}

/** Reads a length and gives the end of the field that follows. Throws RangeError when the end is beyond `limit`. */
function boundedEnd(reader: Reader, limit: number): number {
  const length = reader.uint32();
  const end = reader.pos + length;
  if (end > limit) throw new RangeError("a length runs over its message's end");
  return end;
}
