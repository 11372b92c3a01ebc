import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ServerCredentials, status } from "@grpc/grpc-js";
import { RecordingSink, ScriptedIstiod, until } from "../../../test/lab/scripted-istiod.ts";
import { IstiodStream, type StreamOptions } from "../stream/stream.ts";
import { explainRefusal, openCredentials } from "./credentials.ts";

const IDENTITY = { ips: ["10.0.0.5"], name: "vm1", namespace: "shop", clusterId: "Kubernetes" };
const TARGET = { host: "istiod.example", port: 15012 };

let folder = "";
const file = (name: string) => join(folder, name);

/** A root and a leaf for `names`, as PEM files ROOT.pem, LEAF.pem and LEAF.key. */
function makeCertificate(root: string, leaf: string, names: string): void {
  const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: folder, stdio: "pipe" });
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  openssl("req", "-x509", ...key, "-keyout", `${root}.key`, "-out", `${root}.pem`, "-subj", `/CN=${root}`);
  openssl("req", ...key, "-keyout", `${leaf}.key`, "-out", `${leaf}.csr`, "-subj", "/O=istio");
  writeFileSync(file(`${leaf}.ext`), `subjectAltName=${names}\n`);
  const signer = ["-CA", `${root}.pem`, "-CAkey", `${root}.key`, "-CAcreateserial"];
  openssl("x509", "-req", "-in", `${leaf}.csr`, ...signer, "-out", `${leaf}.pem`, "-extfile", `${leaf}.ext`);
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-credentials-"));
  makeCertificate("root", "istiod", "DNS:istiod.istio-system.svc");
  makeCertificate("stranger", "other", "DNS:something.else");
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

async function secureIstiod(leaf = "istiod", root = "root") {
  const istiod = new ScriptedIstiod();
  istiod.onRequest = (stream, request) => {
    if (request.responseNonce === "" && request.type)
      stream.send(request.type, { resources: { x: "static" } });
  };
  await istiod.start(
    0,
    ServerCredentials.createSsl(readFileSync(file(`${root}.pem`)), [
      { private_key: readFileSync(file(`${leaf}.key`)), cert_chain: readFileSync(file(`${leaf}.pem`)) },
    ]),
  );
  cleanups.push(() => istiod.stop());
  return istiod;
}

function client(port: number, security: StreamOptions["security"]) {
  const sink = new RecordingSink();
  const stream = new IstiodStream({
    istiod: `localhost:${port}`,
    security,
    identity: IDENTITY,
    sink,
    backoff: { first: 20, longest: 50 },
  });
  cleanups.push(() => stream.stop());
  stream.start();
  return { sink, stream };
}

test("TLS: istiod's in-cluster name is verified through localhost, and the token is read for each stream", async () => {
  writeFileSync(file("token"), "first.token\n");
  const istiod = await secureIstiod();
  const { sink, stream } = client(istiod.port, { kind: "tls", ca: file("root.pem"), token: file("token") });
  await until(() => sink.commits.length === 1, "the first commit");
  expect(istiod.last.metadata.get("authorization")).toEqual(["Bearer first.token"]);
  expect(istiod.last.metadata.get("clusterid")).toEqual(["Kubernetes"]);
  writeFileSync(file("token"), "second.token\n");
  istiod.last.fail(status.UNAVAILABLE, "closing");
  await until(() => istiod.streams.length === 2, "the second stream");
  expect(istiod.last.metadata.get("authorization")).toEqual(["Bearer second.token"]);
  expect(stream.status().plaintext).toBe(false);
});

test("a token that vanishes keeps the machine trying, with the file's name as the reason", async () => {
  writeFileSync(file("fleeting"), "t");
  const istiod = await secureIstiod();
  const { sink, stream } = client(istiod.port, {
    kind: "tls",
    ca: file("root.pem"),
    token: file("fleeting"),
  });
  await until(() => sink.commits.length === 1, "the first commit");
  rmSync(file("fleeting"));
  istiod.last.fail(status.UNAVAILABLE, "closing");
  await until(() => stream.status().lastError?.text.includes("ENOENT") ?? false, "the reason");
  expect(stream.status().lastError?.text).toBe(
    `can't read the token ${file("fleeting")} (ENOENT): pass the file of a service account token with --token`,
  );
  writeFileSync(file("fleeting"), "t2");
  await until(() => stream.status().connections === 2, "the reconnect");
});

test("a certificate of another root, or for another name, is refused and says which file or name", async () => {
  const istiod = await secureIstiod();
  const wrong = client(istiod.port, { kind: "tls", ca: file("stranger.pem") });
  await until(() => wrong.stream.status().lastError !== undefined, "the refusal");
  expect(wrong.stream.status().lastError?.text).toContain(
    `the certificate of istiod at localhost:${istiod.port} is not signed by ${file("stranger.pem")}: pass the mesh's root`,
  );
  const impostor = await secureIstiod("other", "stranger");
  const misled = client(impostor.port, { kind: "tls", ca: file("stranger.pem") });
  await until(() => misled.stream.status().lastError !== undefined, "the refusal");
  expect(misled.stream.status().lastError?.text).toContain(
    `the certificate of istiod at localhost:${impostor.port} is not for istiod.istio-system.svc`,
  );
  expect(wrong.sink.calls.concat(misled.sink.calls)).toEqual([]);
  expect(impostor.streams).toEqual([]);
});

test("TLS to a plaintext port says so", async () => {
  const istiod = new ScriptedIstiod();
  await istiod.start();
  cleanups.push(() => istiod.stop());
  const { stream } = client(istiod.port, { kind: "tls", ca: file("root.pem") });
  await until(() => stream.status().lastError !== undefined, "the refusal");
  expect(stream.status().lastError?.text).toContain(`localhost:${istiod.port}`);
});

test.each([
  [
    "missing.pem",
    "can't read the root certificate FILE (ENOENT): pass the mesh's root certificate with --ca",
  ],
  ["empty.pem", "FILE holds no PEM certificate: pass the mesh's root certificate with --ca"],
  ["broken.pem", "FILE holds a certificate that can't be read: write the mesh's root there again"],
])("an unusable root certificate stops the start: %s", (name, message) => {
  writeFileSync(file("empty.pem"), "");
  writeFileSync(file("broken.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
  const open = () => openCredentials({ kind: "tls", ca: file(name) }, TARGET);
  expect(open).toThrow(message.replace("FILE", file(name)));
});

test.each(["", "two words", "line\nbreak"])(
  "what can't be a token is refused before it is sent: %j",
  (content) => {
    writeFileSync(file("odd"), content);
    const open = () => openCredentials({ kind: "tls", ca: file("root.pem"), token: file("odd") }, TARGET);
    expect(open).toThrow(`${file("odd")} holds no token`);
  },
);

test("a token never travels in plaintext", () => {
  expect(openCredentials({ kind: "plaintext" }, TARGET).metadata.getMap()).toEqual({});
});

test("istiod's refusals name the next step", () => {
  const tls = { kind: "tls", ca: "/ca.pem", token: "/token" } as const;
  expect(explainRefusal({ code: 16, details: "expired" }, TARGET, tls)).toBe(
    "istiod at istiod.example:15012 refuses the token in /token: write a fresh one for audience istio-ca there (expired)",
  );
  expect(explainRefusal({ code: 16, details: "no" }, TARGET, { kind: "plaintext" })).toContain(
    "--ca and --token",
  );
  expect(explainRefusal({ code: 14, details: "getaddrinfo ENOTFOUND" }, TARGET, tls)).toContain("/etc/hosts");
  expect(explainRefusal({ code: 13, details: "" }, TARGET, tls)).toBe(
    "the stream to istiod at istiod.example:15012 ended: code 13 (code 13)",
  );
});
