import { describe, expect, test } from "bun:test";
import { Random } from "../../test/lab/random.ts";
import {
  canonicalAddress,
  contains,
  formatAddress,
  isV4,
  maskPrefix,
  parseAddress,
  parsePrefix,
  prefixBits,
} from "./address.ts";

const random = new Random(7);

/** Random bytes with runs of zeros, as addresses have them. */
function randomBytes(): Uint8Array {
  const bytes = new Uint8Array(new ArrayBuffer(16));
  if (random.chance(0.4)) {
    bytes[10] = bytes[11] = 0xff;
    for (let i = 12; i < 16; i++) bytes[i] = random.below(256);
    return bytes;
  }
  for (let i = 0; i < 16; i++) bytes[i] = random.chance(0.5) ? 0 : random.below(256);
  return bytes;
}

describe("text and bytes", () => {
  test("round trip: bytes -> text -> bytes, and the text is canonical", () => {
    for (let i = 0; i < 20_000; i++) {
      const bytes = randomBytes();
      const text = formatAddress(bytes);
      expect(parseAddress(text)).toEqual(bytes);
      expect(canonicalAddress(text)).toBe(text);
      expect(canonicalAddress(`[${text}]`)).toBe(text);
    }
  });

  test("every spelling of an address has the same canonical text", () => {
    for (let i = 0; i < 5_000; i++) {
      const bytes = randomBytes();
      const words = Array.from({ length: 8 }, (_, w) => ((bytes[w * 2] ?? 0) << 8) | (bytes[w * 2 + 1] ?? 0));
      const spelled = words.map((word) => {
        const hex = word.toString(16).padStart(random.chance(0.5) ? 4 : 1, "0");
        return random.chance(0.5) ? hex.toUpperCase() : hex;
      });
      expect(canonicalAddress(spelled.join(":"))).toBe(formatAddress(bytes));
    }
  });

  test.each([
    ["10.0.0.1", "10.0.0.1"],
    ["::ffff:10.0.0.1", "10.0.0.1"],
    ["::ffff:a00:1", "10.0.0.1"],
    ["2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
    ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
    ["::", "::"],
    ["::1", "::1"],
    ["1::", "1::"],
    ["64:ff9b::192.0.2.33", "64:ff9b::c000:221"],
    ["[fd00::1]", "fd00::1"],
  ])("%s is %s", (given, canonical) => {
    expect(canonicalAddress(given)).toBe(canonical);
  });

  test.each([
    "",
    "10.0.0",
    "10.0.0.256",
    "010.0.0.1",
    "fe80::1%eth0",
    "1:2:3:4:5:6:7:8:9",
    "::1::",
    "host",
    "[]",
  ])("%p is not an address", (given) => {
    expect(canonicalAddress(given)).toBeUndefined();
    expect(parseAddress(given)).toBeUndefined();
  });
});

describe("prefixes", () => {
  test.each([
    ["10.1.2.3/16", "10.1.0.0", 16],
    ["10.1.2.3", "10.1.2.3", 32],
    ["0.0.0.0/0", "0.0.0.0", 0],
    ["[fd00:201::1]/64", "fd00:201::", 64],
    ["[fd00:201::1/64]", "fd00:201::", 64],
    ["fd00::1", "fd00::1", 128],
    ["::/0", "::", 0],
    // Of a v4-mapped address only the IPv4 part is counted.
    ["::ffff:10.1.2.3/8", "10.0.0.0", 8],
  ])("%s", (given, address, length) => {
    expect(parsePrefix(given)).toEqual({ address, length });
  });

  test.each(["10.0.0.0/33", "fd00::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/1e1", "/8", "host/8", ""])(
    "%p is none",
    (given) => {
      expect(parsePrefix(given)).toBeUndefined();
    },
  );

  test("masking is idempotent, keeps the family, and the prefix contains what it was made of", () => {
    for (let i = 0; i < 10_000; i++) {
      const address = formatAddress(randomBytes());
      const length = random.below(isV4(address) ? 33 : 129);
      const masked = maskPrefix({ address, length });
      expect(maskPrefix(masked)).toEqual(masked);
      expect(contains(masked, address)).toBe(true);
      expect(prefixBits(masked)).toBe(isV4(masked.address) ? 96 + length : length);
    }
  });

  test("contains looks at exactly the prefix's bits", () => {
    for (let i = 0; i < 5_000; i++) {
      const bytes = randomBytes();
      const address = formatAddress(bytes);
      const width = isV4(address) ? 32 : 128;
      const length = random.below(width + 1);
      const bit = random.below(width);
      const at = 128 - width + bit;
      const flipped = Uint8Array.from(bytes);
      flipped[at >> 3] = (flipped[at >> 3] ?? 0) ^ (0x80 >> (at & 7));
      const other = formatAddress(flipped);
      // Flipping a bit may turn an IPv6 address into a v4-mapped one.
      if (isV4(other) !== isV4(address)) continue;
      expect(contains({ address, length }, other)).toBe(bit >= length);
    }
  });

  test("families never mix", () => {
    expect(contains({ address: "::", length: 0 }, "10.0.0.1")).toBe(false);
    expect(contains({ address: "0.0.0.0", length: 0 }, "fd00::1")).toBe(false);
  });
});
