import { expect, test } from "bun:test";
import { Subscription } from "./subscription.ts";

const LONG = "n".repeat(1_000);

test("versions are kept while a request can hold them, and again when it could", () => {
  const subscription = new Subscription("address");
  subscription.hold("first", 1, "v1");
  expect([subscription.fits, subscription.hasVersion("first")]).toEqual([true, true]);
  expect(subscription.known()).toEqual(new Map([["first", "v1"]]));
  for (let i = 0; i < 3_000; i++) subscription.hold(`${LONG}${i}`, i, "v");
  expect([subscription.fits, subscription.hasVersion("first")]).toEqual([false, false]);
  expect([subscription.hashOf("first"), subscription.hashOf(`${LONG}7`)]).toEqual([1, 7]);
  subscription.hold("first", 2, "v2");
  expect([subscription.hashOf("first"), subscription.hasVersion("first")]).toEqual([2, false]);
  for (let i = 0; i < 1_400; i++) expect(subscription.forget(`${LONG}${i}`)).toBe(true);
  expect(subscription.fits).toBe(false);
  for (let i = 1_400; i < 1_600; i++) subscription.forget(`${LONG}${i}`);
  expect(subscription.fits).toBe(true);
  subscription.hold("first", 3, "v3");
  expect(subscription.known().get("first")).toBe("v3");
  expect(subscription.known().get(`${LONG}2000`)).toBe("");
});

test("holding the same again takes no more room", () => {
  const subscription = new Subscription("address");
  for (let i = 0; i < 10_000; i++) subscription.hold(LONG, i, `v${i}`);
  expect(subscription.fits).toBe(true);
  expect([subscription.held.size, subscription.hashOf(LONG)]).toEqual([1, 9_999]);
});
