import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Server, ServerCredentials, type ServerUnaryCall, type sendUnaryData, status } from "@grpc/grpc-js";
import { Authority } from "../../../test/lab/authority.ts";
import { until } from "../../../test/lab/scripted-istiod.ts";
import { ca } from "../ca.gen.js";
import { CertificateStore } from "./certificate-store.ts";
import { type IdentityEvent, type IdentityOptions, WorkloadIdentity } from "./identity.ts";

const ID = { trustDomain: "cluster.local", namespace: "shop", serviceAccount: "vm" };
const VM = "URI:spiffe://cluster.local/ns/shop/sa/vm";

let folder = "";
let authority: Authority;
const cleanups: (() => void)[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-identity-"));
  authority = new Authority(folder);
  writeFileSync(join(folder, "token"), "a.b.c", { mode: 0o600 });
  writeFileSync(join(folder, "root.pem"), authority.root);
});
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
  rmSync(folder, { recursive: true, force: true });
});

/** What the CA answers: the chain, or an error. */
type Answer = (csr: string) => string[] | { code: status; details: string };
const signed =
  (san = VM, times = { from: -120, to: 86_400 }): Answer =>
  (csr) => [authority.sign(csr, san, times), authority.root];

/** A CA as istiod's, that remembers its callers' tokens: who shows none relies on its certificate. */
async function serve(answer: Answer) {
  const calls: { token: string; cluster: string; validity: number }[] = [];
  const scripted = { answer, calls, port: 0 };
  const server = new Server();
  server.addService(
    {
      CreateCertificate: {
        path: "/istio.v1.auth.IstioCertificateService/CreateCertificate",
        requestStream: false,
        responseStream: false,
        requestSerialize: (value: Buffer) => value,
        requestDeserialize: (bytes: Buffer) => bytes,
        responseSerialize: (value: Uint8Array) => Buffer.from(value),
        responseDeserialize: (bytes: Buffer) => bytes,
      },
    },
    {
      CreateCertificate: (call: ServerUnaryCall<Buffer, Uint8Array>, reply: sendUnaryData<Uint8Array>) => {
        const { csr, validityDuration } = ca.IstioCertificateRequest.decode(call.request);
        calls.push({
          token: String(call.metadata.get("authorization")[0] ?? ""),
          cluster: String(call.metadata.get("clusterid")[0] ?? ""),
          validity: Number(validityDuration),
        });
        const said = scripted.answer(csr);
        if (Array.isArray(said))
          reply(null, ca.IstioCertificateResponse.encode({ certChain: said }).finish());
        else reply(said);
      },
    },
  );
  const own = authority.issue("DNS:istiod.istio-system.svc");
  const pair = { private_key: Buffer.from(own.key), cert_chain: Buffer.from(own.chain) };
  const secure = ServerCredentials.createSsl(Buffer.from(authority.root), [pair], false);
  scripted.port = await new Promise<number>((resolve, reject) =>
    server.bindAsync("127.0.0.1:0", secure, (error, port) => (error ? reject(error) : resolve(port))),
  );
  cleanups.push(() => server.forceShutdown());
  return scripted;
}

function identityOf(port: number, options: Partial<IdentityOptions> = {}) {
  const events: IdentityEvent[] = [];
  const identity = new WorkloadIdentity({
    istiod: `localhost:${port}`,
    id: ID,
    ca: join(folder, "root.pem"),
    token: join(folder, "token"),
    clusterId: "Kubernetes",
    store: new CertificateStore(join(folder, "identity")),
    on: (event) => events.push(event),
    backoff: { first: 20, longest: 40 },
    ...options,
  });
  cleanups.push(() => identity.stop());
  const reasons = () => events.flatMap((event) => ("reason" in event ? [event.reason] : []));
  return { identity, events, reasons };
}

test("token and cluster go with the first request; half of the life later the next is due", async () => {
  const server = await serve(signed());
  const { identity, events, reasons } = identityOf(server.port);
  await identity.begin();
  expect(reasons()).toEqual([]);
  expect(server.calls).toEqual([{ token: "Bearer a.b.c", cluster: "Kubernetes", validity: 86_400 }]);
  const [event] = events;
  if (event?.kind !== "obtained") throw new Error("no certificate");
  const half = event.notAfter - (86_400_000 + 120_000) / 2;
  expect(Math.abs(event.renewal - half)).toBeLessThanOrEqual(0.01 * 86_520_000 + 1_000);
});

test("a clock that reaches the half of its life renews it, and the chain's root is trusted from then on", async () => {
  const server = await serve(signed());
  let ahead = 0;
  const first = identityOf(server.port);
  await first.identity.begin();
  first.identity.stop();
  ahead = 13 * 3_600_000;
  const second = authority.root;
  server.answer = (csr) => [
    authority.sign(csr, VM, { from: ahead / 1000 - 120, to: ahead / 1000 + 86_400 }),
    `${second}${second}`,
  ];
  const { identity, events } = identityOf(server.port, { clock: () => Date.now() + ahead });
  await identity.begin();
  await until(() => events.length === 2, "the renewal");
  expect(events).toMatchObject([{ kind: "reused" }, { kind: "obtained", proof: "certificate" }]);
  expect(server.calls.at(-1)).toMatchObject({ token: "" });
  expect(identity.roots().match(/BEGIN/g)?.length).toBe(2);
});

test("istiod that does not take the certificate is shown the token, and doubted again only after a while", async () => {
  const server = await serve(signed());
  const { identity, events } = identityOf(server.port);
  await identity.begin();
  let refusals = 0;
  const sign = server.answer;
  server.answer = (csr) =>
    server.calls.at(-1)?.token === "" && refusals++ === 0
      ? { code: status.UNAUTHENTICATED, details: "no" }
      : sign(csr);
  identity.doubt();
  await until(() => events.length === 2, "the renewal");
  expect(events.at(-1)).toMatchObject({ kind: "obtained", proof: "token" });
  identity.doubt();
  await Bun.sleep(50);
  expect(server.calls.length).toBe(3);
});

test("what worked, but should be mended, is remarked", async () => {
  const server = await serve(signed("URI:spiffe://mesh.example/ns/shop/sa/vm"));
  writeFileSync(join(folder, "blocked"), "");
  writeFileSync(join(folder, "open"), "a.b.c", { mode: 0o644 });
  const { identity, events, reasons } = identityOf(server.port, {
    token: join(folder, "open"),
    store: new CertificateStore(join(folder, "blocked/identity")),
  });
  await identity.begin();
  expect(reasons().join("\n")).toMatch(
    /^others can read the token in .*: chmod 0600 .*open\nthe certificate in .*blocked\/identity is not used: .*ENOTDIR.*\nistiod's trust domain is mesh.example, not cluster.local: say --trust-domain mesh.example\nthe new certificate can't be kept in .*, a restart will need the token: /,
  );
  expect(events.at(-1)).toMatchObject({ kind: "obtained", id: "spiffe://mesh.example/ns/shop/sa/vm" });
});

test.each([
  ["a chain without a root", () => [authority.root], "istiod's answer holds no certificate and root"],
  ["another's key", () => [authority.issue(VM).chain, authority.root], "the key is another certificate's"],
  [
    "another service account",
    (csr: string) => [authority.sign(csr, `${VM}2`, { from: -9, to: 99 }), authority.root],
    "it is spiffe://cluster.local/ns/shop/sa/vm2's: --namespace and --service-account must be those of the token",
  ],
] as [string, (csr: string) => string[], string][])("%s is not used", async (_, answer, reason) => {
  const server = await serve(answer);
  const { identity, reasons } = identityOf(server.port);
  await identity.begin();
  expect(reasons()).toEqual([`the certificate that istiod signed can't be used: ${reason}`]);
  expect(identity.current()).toBeUndefined();
  server.answer = signed();
  await until(() => identity.current() !== undefined, "the next attempt");
});

test("a token that is written anew is tried at once, however long the pause is", async () => {
  const server = await serve(() => ({ code: status.UNAUTHENTICATED, details: "no" }));
  const { identity, events } = identityOf(server.port, { backoff: { first: 60_000, longest: 60_000 } });
  await identity.begin();
  expect(events).toMatchObject([{ kind: "failed" }]);
  server.answer = signed();
  writeFileSync(join(folder, "token"), "fresh.b.c", { mode: 0o600 });
  await until(() => events.some(({ kind }) => kind === "obtained"), "the certificate");
  expect(server.calls.map(({ token }) => token)).toEqual(["Bearer a.b.c", "Bearer fresh.b.c"]);
});

test("a clock that has lost its time is named, and the kept certificate serves again once it is set", async () => {
  const server = await serve(signed());
  const first = identityOf(server.port);
  await first.identity.begin();
  first.identity.stop();
  server.answer = () => ({ code: status.UNAUTHENTICATED, details: "no" });
  let now = 0;
  const { identity, reasons } = identityOf(server.port, { clock: () => now });
  await identity.begin();
  expect(identity.current()).toBeUndefined();
  expect(reasons()[0]).toMatch(
    /^it is 1970-01-01T00:00:00Z by this machine's clock, and the certificate of \S+ is good from \S+Z on: set the clock/,
  );
  now = Date.now();
  expect(identity.current()).toBeDefined();
});

test("a clock that jumps ahead of the certificate's end and back takes nothing away", async () => {
  const server = await serve(signed());
  let ahead = 0;
  const { identity, reasons } = identityOf(server.port, { clock: () => Date.now() + ahead });
  await identity.begin();
  const held = identity.current();
  expect(held).toBeDefined();
  ahead = 10 * 365 * 86_400_000;
  expect(identity.current()).toBeUndefined();
  expect(identity.status().certificate).toMatchObject({ valid: false });
  // What istiod signs now is not valid by such a clock: it is not taken in the other's place.
  identity.doubt();
  await until(() => reasons().length > 0, "the refusal");
  expect(reasons()[0]).toContain("the certificate that istiod just signed is not valid now, since ");
  ahead = 0;
  expect(identity.current()).toBe(held);
});
