import { afterEach, beforeEach, expect, test } from "bun:test";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Authority } from "../../../test/lab/authority.ts";
import { isValidAt, MalformedCertificate, readCertificate } from "./certificate.ts";
import { CertificateStore } from "./certificate-store.ts";

let folder = "";
let authority: Authority;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-store-"));
  authority = new Authority(folder);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const VM = "URI:spiffe://cluster.local/ns/shop/sa/vm";

function issue(san = VM) {
  const { key, chain } = authority.issue(san);
  return readCertificate(key, chain, authority.root);
}

test("what is stored is loaded, for the owner alone, and nothing older is left", () => {
  const store = new CertificateStore(join(folder, "state/identity"));
  expect(store.load()).toBeUndefined();
  store.save(issue());
  const second = issue();
  store.save(second);
  expect(store.load()).toEqual(second);
  const current = join(store.folder, "current");
  expect(readdirSync(current).sort()).toEqual(["cert-chain.pem", "key.pem", "root-cert.pem"]);
  for (const name of readdirSync(current)) expect(statSync(join(current, name)).mode & 0o777).toBe(0o600);
  expect(statSync(store.folder).mode & 0o777).toBe(0o700);
  expect(readdirSync(store.folder).length).toBe(2);
});

test("a copy on another machine is refused; one that is bound to none is anybody's", () => {
  const at = join(folder, "identity");
  const here = new CertificateStore(at, "this machine");
  const certificate = issue();
  here.save(certificate);
  expect(here.load()).toEqual(certificate);
  expect(statSync(join(at, "current/machine")).mode & 0o777).toBe(0o600);
  for (const other of [new CertificateStore(at, "another machine"), new CertificateStore(at)])
    expect(() => other.load()).toThrow(
      new MalformedCertificate("it is another machine's (/etc/machine-id differs)"),
    );
  const own = issue();
  new CertificateStore(at, "another machine").save(own);
  expect(new CertificateStore(at, "another machine").load()).toEqual(own);
  new CertificateStore(at).save(certificate);
  expect(here.load()).toEqual(certificate);
});

test("a write that was cut short leaves the certificate before it, and is swept away by the next", () => {
  const store = new CertificateStore(join(folder, "identity"));
  const first = issue();
  store.save(first);
  mkdirSync(join(store.folder, "cert-aborted"));
  writeFileSync(join(store.folder, "cert-aborted/key.pem"), "half");
  expect(store.load()).toEqual(first);
  store.save(issue());
  expect(readdirSync(store.folder).filter((name) => name.includes("aborted"))).toEqual([]);
});

test("where nothing can be written the one before stays", () => {
  const blocked = join(folder, "file");
  writeFileSync(blocked, "");
  expect(() => new CertificateStore(blocked).save(issue())).toThrow(/EEXIST|ENOTDIR/);
  expect(readFileSync(blocked, "utf8")).toBe("");
});

test("a stored certificate that lost a file, or has another's key, says so", () => {
  const store = new CertificateStore(join(folder, "identity"));
  store.save(issue());
  const key = join(store.folder, "current/key.pem");
  chmodSync(key, 0o600);
  writeFileSync(key, issue().key);
  expect(() => store.load()).toThrow(new MalformedCertificate("the key is another certificate's"));
  rmSync(key);
  expect(() => store.load()).toThrow(new MalformedCertificate(`${key} can't be read (ENOENT)`));
});

test("a certificate is read as a whole, or its fault is told", () => {
  const { key, chain } = authority.issue(VM, { from: -3, to: -1 });
  const old = readCertificate(key, chain, authority.root);
  expect(old.id).toEqual({ trustDomain: "cluster.local", namespace: "shop", serviceAccount: "vm" });
  expect(isValidAt(old, Date.now())).toBe(false);
  expect(isValidAt(old, old.notBefore)).toBe(true);
  expect(isValidAt(old, old.notAfter)).toBe(false);
  const stranger = mkdtempSync(join(folder, "stranger-"));
  const foreign = new Authority(stranger).root;
  const web = authority.issue("DNS:example.org");
  for (const [parts, reason] of [
    [[key, "", authority.root], "it holds no certificate"],
    [[key, chain, ""], "it comes without a root"],
    [[key, chain, foreign], "the chain does not lead to its root"],
    [["x", chain, authority.root], "the key is another certificate's"],
    [[web.key, web.chain, authority.root], "it names no workload (DNS:example.org)"],
    [
      [key, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", authority.root],
      "a part of it is not a certificate",
    ],
  ] as [[string, string, string], string][])
    expect(() => readCertificate(...parts)).toThrow(new MalformedCertificate(reason));
});
