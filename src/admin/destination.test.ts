import { expect, test } from "bun:test";
import { parseDestination } from "./destination.ts";

test("hosts and addresses, with and without a port", () => {
  expect(parseDestination("Shop.demo:80")).toEqual({ host: "shop.demo", address: undefined, port: 80 });
  expect(parseDestination("shop")).toEqual({ host: "shop", address: undefined, port: undefined });
  expect(parseDestination("10.0.0.1:80")).toEqual({ host: "10.0.0.1", address: "10.0.0.1", port: 80 });
  expect(parseDestination("[FD00::1]:80")).toEqual({ host: "fd00::1", address: "fd00::1", port: 80 });
  expect(parseDestination("fd00::1")).toEqual({ host: "fd00::1", address: "fd00::1", port: undefined });
  expect(parseDestination("*.example.com:443")?.host).toBe("*.example.com");
});

test("anything else is nothing", () => {
  for (const wrong of ["", ":80", "a:b", "a:0", "a:65536", "[x]:80", "a b", "http://a", "-a"]) {
    expect(parseDestination(wrong)).toBeUndefined();
  }
});
