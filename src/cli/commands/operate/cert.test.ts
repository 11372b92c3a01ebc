import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Authority } from "../../../../test/lab/authority.ts";
import { readCertificate } from "../../../istiod/identity/certificate.ts";
import { takeApart } from "../../../istiod/identity/certificate-chain.ts";
import { formatChain } from "./cert.ts";

const DAY = 86_400_000;
let folder = "";
let authority: Authority;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-cert-"));
  authority = new Authority(folder);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function page(ahead: number) {
  const { key, chain } = authority.issue("URI:spiffe://cluster.local/ns/shop/sa/vm");
  const certificate = readCertificate(key, chain, authority.root);
  const now = Date.now() + ahead;
  const apart = takeApart(certificate, now);
  return { ...apart, lines: formatChain("/state/identity", certificate, apart, now).split("\n") };
}

test("the chain, link by link", () => {
  const { lines, valid, chain, roots } = page(0);
  expect(valid).toBe(true);
  expect([chain.length, roots.length]).toEqual([1, 1]);
  expect(chain[0]).toMatchObject({
    subject: "",
    names: ["URI:spiffe://cluster.local/ns/shop/sa/vm"],
    issuer: "O=test",
    key: "ec prime256v1",
  });
  expect(lines.slice(0, 2)).toEqual([
    "identity   spiffe://cluster.local/ns/shop/sa/vm",
    "kept in    /state/identity",
  ]);
  expect(lines).toContain("  names    URI:spiffe://cluster.local/ns/shop/sa/vm");
  expect(lines).toContain("  subject  O=test");
  expect(lines.filter((line) => /^\S/.test(line)).slice(2)).toEqual(["certificate", "root"]);
  expect(lines.find((line) => line.startsWith("  valid"))).toMatch(
    /^ {2}valid {4}for 24 h \(\S+Z to \S+Z\)$/,
  );
});

test("what is over, and what is not yet", () => {
  const late = page(3 * DAY);
  expect(late.valid).toBe(false);
  expect(late.lines.find((line) => line.startsWith("  valid"))).toContain("EXPIRED 2 days ago");
  const early = page(-3 * DAY);
  expect(early.valid).toBe(false);
  expect(early.lines.find((line) => line.startsWith("  valid"))).toContain("is this machine's clock right?");
});
