import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { faultOfToken, freshTokenCommand, isExposed, readToken } from "./token.ts";

const ID = { trustDomain: "cluster.local", namespace: "shop", serviceAccount: "vm" };
const NOW = Date.parse("2026-01-01T00:00:00Z");
const SUB = "system:serviceaccount:shop:vm";
const jwt = (claims: object) => `h.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.s`;

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-token-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test.each([
  [{ aud: ["istio-ca"], sub: SUB, exp: NOW / 1000 + 1 }, undefined],
  [{ aud: "istio-ca", sub: SUB }, undefined],
  [{ aud: ["istio-ca"], sub: SUB, exp: NOW / 1000 }, "it expired at 2026-01-01T00:00:00Z"],
  [{ sub: SUB }, "it is for audience (none), not istio-ca"],
  [
    { aud: ["istio-ca"], sub: "system:serviceaccount:a:b" },
    `it is system:serviceaccount:a:b's, not ${SUB}'s`,
  ],
])("what %j says about itself", (claims, fault) => {
  expect(faultOfToken(jwt(claims), ID, NOW)).toBe(fault);
});

test("what is no token is told as such", () => {
  for (const text of ["word", "a.b.c", "a.e30"]) expect(faultOfToken(text, ID, NOW)).toBeString();
});

test("a token is read without its line's end, and whoever may read it shows", () => {
  const file = join(folder, "token");
  writeFileSync(file, "a.b.c\n", { mode: 0o600 });
  expect(readToken(file)).toBe("a.b.c");
  expect(isExposed(file)).toBe(false);
  chmodSync(file, 0o640);
  expect(isExposed(file)).toBe(true);
  expect(isExposed(join(folder, "none"))).toBe(false);
});

test("the command for a fresh one is whole", () => {
  expect(freshTokenCommand(ID, "/t")).toBe(
    "kubectl create token vm --namespace shop --audience istio-ca > /t",
  );
});
