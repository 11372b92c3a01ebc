import { expect, test } from "bun:test";
import { BadRequest, Conflict } from "../admin/server.ts";
import { readRestartRequest } from "./restart-request.ts";

const GOOD = {
  kind: "upgrade",
  graceful: true,
  executable: "/usr/bin/kmesh",
  timeout: 60_000,
  asked: 1_000_000,
};

test("an order is taken as it is, without what it has beyond", () => {
  expect(readRestartRequest({ ...GOOD, more: 1 }, 1_000_500)).toEqual({ ...GOOD, kind: "upgrade" });
});

test("what is no order is refused, with what is wrong", () => {
  const wrong: [object | string | null, string][] = [
    [null, "object"],
    ["restart", "object"],
    [{ ...GOOD, kind: "stop" }, '"stop" is neither restart nor upgrade nor rollback'],
    [{ ...GOOD, graceful: "yes" }, "graceful"],
    [{ ...GOOD, executable: "kmesh" }, "executable"],
    [{ ...GOOD, timeout: 0 }, "timeout"],
    [{ ...GOOD, timeout: Number.NaN }, "timeout"],
  ];
  for (const [body, text] of wrong) {
    expect(() => readRestartRequest(body, GOOD.asked)).toThrow(BadRequest);
    expect(() => readRestartRequest(body, GOOD.asked)).toThrow(text);
  }
});

test("what was asked of an agent that hung is not done later", () => {
  expect(() => readRestartRequest(GOOD, GOOD.asked + 60_000)).toThrow(Conflict);
  expect(() => readRestartRequest({ ...GOOD, asked: undefined }, GOOD.asked)).toThrow(Conflict);
});
