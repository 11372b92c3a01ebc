import { expect, test } from "bun:test";
import { discovery } from "../discovery.gen.js";
import { eachResource, readEnvelope } from "./response.ts";

const message = discovery.DeltaDiscoveryResponse.encode({
  systemVersionInfo: "2026/7",
  typeUrl: "t",
  nonce: "n1",
  removedResources: ["gone", ""],
  resources: [
    { name: "a", version: "3", resource: { typeUrl: "t", value: Uint8Array.of(1, 2, 3) } },
    { name: "empty", resource: { typeUrl: "t" } },
    { name: "nothing" },
  ],
}).finish();

function resourcesOf(bytes: Uint8Array) {
  const seen: unknown[] = [];
  const broken: number[] = [];
  eachResource(
    bytes,
    ({ name, version, typeUrl, bytes }) => seen.push([name, version, typeUrl, [...bytes]]),
    (index) => broken.push(index),
  );
  return { seen, broken };
}

test("the envelope and its resources", () => {
  expect(readEnvelope(message)).toEqual({
    version: "2026/7",
    typeUrl: "t",
    nonce: "n1",
    removed: ["gone", ""],
    resources: 3,
  });
  expect(resourcesOf(message)).toEqual({
    seen: [
      ["a", "3", "t", [1, 2, 3]],
      ["empty", "", "t", []],
      ["nothing", "", "", []],
    ],
    broken: [],
  });
});

test("the bytes of a resource are not copied", () => {
  const whole = Buffer.from(message);
  eachResource(
    whole,
    ({ bytes }) => bytes.length > 0 && expect(bytes.buffer).toBe(whole.buffer),
    () => {},
  );
});

test("fields that kmesh does not know are skipped", () => {
  const extended = Buffer.concat([Uint8Array.of(0x3a, 2, 0x0a, 0, 0x98, 0x06, 0x01), message]);
  expect(readEnvelope(extended).resources).toBe(3);
  expect(resourcesOf(extended).seen.length).toBe(3);
});

test("a resource whose own framing is broken costs only itself", () => {
  // The any's length inside the first resource now runs over the resource's end.
  const at = message.indexOf(0x12, message.indexOf(0x12) + 2);
  const bent = Buffer.from(message);
  bent[at + 1] = 0x7f;
  expect(readEnvelope(bent).resources).toBe(3);
  expect(resourcesOf(bent).broken).toEqual([0]);
  expect(resourcesOf(bent).seen.length).toBe(2);
});

test("a truncation anywhere but between two outer fields is noticed", () => {
  const readable: number[] = [];
  for (let length = 1; length < message.length; length++) {
    try {
      readEnvelope(message.subarray(0, length));
      readable.push(length);
    } catch (error) {
      expect(error).toBeInstanceOf(Error);
    }
  }
  // Version, three resources, type, nonce and two removed names have seven borders between them.
  expect(readable.length).toBe(7);
});
