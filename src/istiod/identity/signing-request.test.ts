import { afterAll, beforeAll, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { formatSpiffe, parseSpiffe } from "../spiffe.ts";
import { newSigningRequest } from "./signing-request.ts";

const ID = { trustDomain: "cluster.local", namespace: "shop", serviceAccount: "vm" };

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-csr-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const openssl = (...args: string[]) =>
  execFileSync("openssl", args, { cwd: folder, stdio: "pipe", encoding: "utf8" });

test("openssl verifies the request: P-256, no subject, one critical SPIFFE name, and the key is its key", async () => {
  const { key, csr } = await newSigningRequest(ID);
  writeFileSync(join(folder, "csr.pem"), csr);
  writeFileSync(join(folder, "key.pem"), key);
  openssl("req", "-in", "csr.pem", "-verify", "-noout");
  const text = openssl("req", "-in", "csr.pem", "-noout", "-text");
  expect(text).toContain("NIST CURVE: P-256");
  expect(text).toMatch(/Subject: *\n/);
  expect(text).toMatch(
    /X509v3 Subject Alternative Name: critical\s+URI:spiffe:\/\/cluster\.local\/ns\/shop\/sa\/vm\s/,
  );
  const publicOf = (kind: "req" | "pkey") =>
    kind === "req"
      ? openssl("req", "-in", "csr.pem", "-noout", "-pubkey")
      : openssl("pkey", "-in", "key.pem", "-pubout");
  expect(publicOf("pkey")).toBe(publicOf("req"));
});

test("each request has a key of its own", async () => {
  const [first, second] = [await newSigningRequest(ID), await newSigningRequest(ID)];
  expect(first.key).not.toBe(second.key);
});

test("a SPIFFE id is read as it is written, and nothing else is one", () => {
  expect(parseSpiffe(formatSpiffe(ID))).toEqual(ID);
  for (const text of [
    "",
    "spiffe://td",
    "spiffe://td/ns/a",
    "https://td/ns/a/sa/b",
    "spiffe://td/ns/a/sa/b/c",
  ])
    expect(parseSpiffe(text)).toBeUndefined();
});
