import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { ActionableError, withNextStep } from "./actionable-error.ts";
import { codeOf, codeOrReason, isMissing, reasonOf } from "./reason.ts";

function thrown(act: () => unknown): unknown {
  try {
    act();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

test("errors, system errors and other thrown values", () => {
  const missing = thrown(() => readFileSync("/does/not/exist"));
  expect([codeOf(missing), codeOrReason(missing), isMissing(missing)]).toEqual(["ENOENT", "ENOENT", true]);
  expect(reasonOf(missing)).toStartWith("ENOENT: no such file or directory");
  const plain = new Error("plain");
  expect([reasonOf(plain), codeOf(plain), codeOrReason(plain), isMissing(plain)]).toEqual([
    "plain",
    undefined,
    "Error: plain",
    false,
  ]);
  expect([reasonOf("text"), codeOf("text"), codeOrReason(7)]).toEqual(["text", undefined, "7"]);
});

test("an actionable error carries the next step and the name of its class", () => {
  class Refused extends ActionableError {}
  const refused = new Refused("it is refused", "Ask again.");
  expect([refused.name, withNextStep(refused)]).toEqual(["Refused", "it is refused\n  Ask again."]);
  expect(withNextStep(new ActionableError("it is over", ""))).toBe("it is over");
});
