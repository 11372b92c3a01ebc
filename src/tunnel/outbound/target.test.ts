import { expect, test } from "bun:test";
import { addressOfTarget, MAX_TARGET, targetOfAddress } from "./target.ts";

test("a number and its loopback address lead to each other", () => {
  for (const number of [1, 2, 255, 256, 65_535, 65_536, 1_000_000, MAX_TARGET]) {
    expect(targetOfAddress(addressOfTarget(number))).toBe(number);
    expect(targetOfAddress(`::ffff:${addressOfTarget(number)}`)).toBe(number);
  }
  expect(addressOfTarget(0x010203)).toBe("127.1.2.3");
});

test("other addresses name no target", () => {
  for (const address of [
    undefined,
    "",
    "127.0.0.0",
    "127.255.255.255",
    "127.1.2",
    "127.1.2.256",
    "126.0.0.1",
    "::1",
    "127.0.0.1.1",
  ])
    expect(targetOfAddress(address)).toBeUndefined();
  for (const number of [0, -1, 1.5, MAX_TARGET + 1])
    expect(() => addressOfTarget(number)).toThrow(RangeError);
});
