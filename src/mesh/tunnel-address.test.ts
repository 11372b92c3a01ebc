import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
  addressOfTarget,
  FIRST_TARGET,
  LAST_TARGET,
  TUNNEL_PORT,
  targetOfAddress,
} from "./tunnel-address.ts";

test("a number and its loopback address lead to each other", () => {
  for (const number of [FIRST_TARGET, 255, 256, 65_535, 65_536, 1_000_000, LAST_TARGET]) {
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
    "127.0.0.1",
    "127.255.255.255",
    "127.1.2",
    "127.1.2.256",
    "126.0.0.1",
    "::1",
    "127.0.0.1.1",
  ])
    expect(targetOfAddress(address)).toBeUndefined();
  for (const number of [0, 1, -1, 2.5, LAST_TARGET + 1])
    expect(() => addressOfTarget(number)).toThrow(RangeError);
});

test("the kernel half has the same port and first number", () => {
  const header = readFileSync(join(import.meta.dir, "../../bpf/maps/tunnel-port.h"), "utf8");
  const value = (name: string) => Number(new RegExp(`#define ${name} (\\d+)`).exec(header)?.[1]);
  expect(value("TUNNEL_PORT")).toBe(TUNNEL_PORT);
  expect(value("TUNNEL_FIRST_NUMBER")).toBe(FIRST_TARGET);
});
