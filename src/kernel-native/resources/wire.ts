/** Decoding shared by all resources: errors that name the resource, and typed configuration. */

import type { Reader } from "protobufjs/minimal.js";
import { reasonOf } from "../../errors/reason.ts";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import type { envoy } from "./envoy.gen.js";

/** Longest name of a resource, in characters. istiod's come from Kubernetes and stay below a thousand. */
const LONGEST_NAME = 4096;

interface MessageType<T> {
  decode(reader: Reader | Uint8Array): T;
}

/** Decodes a whole resource. Throws MalformedResource naming `resource` when the bytes are no such message. */
export function decode<T>(type: MessageType<T>, resource: string, bytes: Uint8Array): T {
  return guarded(resource, () => type.decode(bytes));
}

/** Runs `work` and turns what a protobuf reader throws into a MalformedResource naming `resource`. */
export function guarded<T>(resource: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof MalformedResource) throw error;
    const reason = reasonOf(error);
    throw new MalformedResource(shortName(resource), `not a valid message: ${reason}`);
  }
}

/** Throws MalformedResource when `resource` is no valid name, or the message has another name. */
export function checkName(resource: string, inside: string): void {
  if (resource === "") throw new MalformedResource(resource, "it has no name");
  if (resource.length > LONGEST_NAME) {
    const reason = `its name has ${resource.length} characters, more than ${LONGEST_NAME}`;
    throw new MalformedResource(shortName(resource), reason);
  }
  if (inside === "") throw new MalformedResource(resource, "the message inside has no name");
  if (inside !== resource) {
    throw new MalformedResource(resource, `the message inside is called ${shortName(inside)}`);
  }
}

/** Cuts a name to 256 characters, for error texts. */
export function shortName(name: string): string {
  return name.length <= 256 ? name : `${name.slice(0, 256)}...`;
}

/** The last part of a type URL: `TcpProxy` of type.googleapis.com/envoy...v3.TcpProxy. */
export function messageName(any: envoy.Any.$Properties | null | undefined): string {
  const url = any?.typeUrl ?? "";
  return url.slice(url.lastIndexOf(".") + 1);
}

/** Decodes a typed configuration whose message type is known. */
export function decodeAny<T>(type: MessageType<T>, any: envoy.Any.$Properties): T {
  return type.decode(any.value ?? new Uint8Array(0));
}

/** Throws MalformedResource unless `value` is between 0 and `highest`. */
export function checkEnum(resource: string, field: string, value: number, highest: number): void {
  if (!Number.isInteger(value) || value < 0 || value > highest) {
    throw new MalformedResource(shortName(resource), `${field} has the unknown value ${value}`);
  }
}

/** Seconds of a duration, 0 when there is none. */
export function seconds(duration: envoy.Duration.$Properties | null | undefined): number {
  if (!duration) return 0;
  return (duration.seconds ?? 0) + (duration.nanos ?? 0) / 1e9;
}

/** Reads the length of an embedded message and gives its end. Throws RangeError when fewer bytes are left. */
export function openMessage(reader: Reader): number {
  const length = reader.uint32();
  const end = reader.pos + length;
  if (end > reader.len) {
    throw new RangeError(`truncated: ${length} bytes announced, ${reader.len - reader.pos} left`);
  }
  return end;
}
