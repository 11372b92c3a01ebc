import { expect, test } from "bun:test";
import { describeTarget, dialled, formatTarget, parseDialled, parseTarget, serverName } from "./target.ts";

test.each([
  ["istiod.istio-system.svc:15012", "istiod.istio-system.svc", 15012],
  ["10.0.0.1:15010", "10.0.0.1", 15010],
  ["[fd00::1]:15010", "fd00::1", 15010],
])("%s", (text, host, port) => {
  expect(parseTarget(text)).toEqual({ host, port });
  expect(formatTarget({ host, port })).toBe(text);
});

test.each(["", "istiod", "istiod:", "istiod:0", "istiod:70000", ":15010", "fd00::1:15010", "[istiod]:15010"])(
  "%j is refused",
  (text) => expect(() => parseTarget(text)).toThrow("is not an address of istiod"),
);

test("through this machine istiod is known by its name in the cluster", () => {
  for (const host of ["localhost", "127.0.0.1", "::1"]) {
    expect(serverName({ host, port: 1 })).toBe("istiod.istio-system.svc");
  }
  expect(serverName({ host: "istiod.example", port: 1 })).toBe("istiod.example");
});

test("an address is dialled in place of the name, which the certificate must still be for", () => {
  const target = parseTarget("istiod.example:15012", {
    "istiod.example": ["fd00::1"],
    other: ["10.0.0.1"],
  });
  expect(dialled(target)).toBe("dns:[fd00::1]:15012");
  expect(serverName(target)).toBe("istiod.example");
  expect(formatTarget(target)).toBe("istiod.example:15012");
  expect(describeTarget(target)).toBe("istiod.example:15012 (fd00::1)");
  expect(dialled(parseTarget("istiod.example:15012"))).toBe("dns:istiod.example:15012");
  expect(parseTarget("toString:1", {}).addresses).toBeUndefined();
});

test("a DNS name is dialled in place of the name, looked up for each connection", () => {
  const target = parseTarget("istiod.example:15012", { "istiod.example": ["lb.cloud.example"] });
  expect(dialled(target)).toBe("dns:lb.cloud.example:15012");
  expect(serverName(target)).toBe("istiod.example");
  expect(describeTarget(target)).toBe("istiod.example:15012 (lb.cloud.example)");
});

test.each([
  ["10.0.0.1", "10.0.0.1"],
  ["FD00:0::1", "fd00::1"],
  ["LB-1.eu.elb.example.", "lb-1.eu.elb.example"],
  ["10.0.0.300", undefined],
  ["10.0.0", undefined],
  ["istiod", undefined],
  ["a..b", undefined],
  ["-a.b", undefined],
  ["a b.c", undefined],
  ["", undefined],
])("%j may be dialled as %j", (text, dialled) => expect(parseDialled(text)).toBe(dialled));

test("several addresses are all dialled, in their order", () => {
  const target = (...addresses: string[]) =>
    parseTarget("istiod.example:15012", { "istiod.example": addresses });
  expect(dialled(target("10.0.0.2", "10.0.0.1"))).toBe("ipv4:10.0.0.2:15012,10.0.0.1:15012");
  expect(dialled(target("fd00::1", "fd00::2"))).toBe("ipv6:[fd00::1]:15012,[fd00::2]:15012");
  expect(dialled(target("10.0.0.1", "fd00::1"))).toBe("ipv6:[::ffff:10.0.0.1]:15012,[fd00::1]:15012");
  expect(describeTarget(target("10.0.0.2", "10.0.0.1"))).toBe("istiod.example:15012 (10.0.0.2, 10.0.0.1)");
});
