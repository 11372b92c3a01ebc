/** The certificate of a VM from the real istiod's CA: by istioctl's files, renewed by itself, and refused in each way. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import { readConfig } from "../../src/config/config.ts";
import { settingsOf } from "../../src/config/from-istioctl.ts";
import { DecodingSink } from "../../src/demo/decoding-sink.ts";
import { CertificateStore } from "../../src/istiod/identity/certificate-store.ts";
import {
  type IdentityEvent,
  type IdentityOptions,
  WorkloadIdentity,
} from "../../src/istiod/identity/identity.ts";
import { formatProblem, MEMBERSHIP_FILES, readMembership } from "../../src/istiod/join/membership.ts";
import type { Identity } from "../../src/istiod/node.ts";
import type { StreamEvent } from "../../src/istiod/stream/status.ts";
import { IstiodStream } from "../../src/istiod/stream/stream.ts";
import { nodeIdentity } from "../../src/machine/node.ts";
import { binaries, ControlPlane, istioctl } from "../control-plane/control-plane.ts";
import { eventually, output } from "../lab/process.ts";
import { serviceEntry } from "./objects.ts";

setDefaultTimeout(60_000);
const built = binaries();
if ("missing" in built) console.warn(`the identity's interop tests are skipped: ${built.missing}`);

const ID = { trustDomain: "cluster.local", namespace: "shop", serviceAccount: "vm" };
/** istiod dates back by 120 s, so half of the life of such a certificate is over some seconds after it was signed. */
const SHORT = 126;

describe.skipIf("missing" in built)("a VM's identity and the real istiod", () => {
  let plane: ControlPlane;
  let files = "";
  let count = 0;
  const cleanups: (() => void)[] = [];

  beforeAll(async () => {
    if ("missing" in built) return;
    plane = await ControlPlane.start({ binaries: built.folder, namespaces: ["shop"] });
    await plane.kube.apply(
      {
        apiVersion: "networking.istio.io/v1",
        kind: "WorkloadGroup",
        metadata: { name: "vms", namespace: "shop" },
        // Without metadata istioctl crashes.
        spec: {
          metadata: { labels: { app: "vms" } },
          template: { serviceAccount: "vm" },
          probe: { httpGet: { path: "/ready", port: 8080 } },
        },
      },
      serviceEntry("one", {
        addresses: ["10.97.1.1"],
        ports: [{ number: 7000, name: "tcp", protocol: "TCP" }],
        endpoints: [{ address: "172.31.1.1" }],
      }),
    );
    await plane.rootCertificate();
    files = join(plane.folder, "files");
    mkdirSync(files);
    const configure = ["x", "workload", "entry", "configure", "--name=vms", "--namespace=shop"];
    const more = ["--clusterID=Kubernetes", "--ingressIP=127.0.0.1", "--autoregister", "-o", files];
    await istioctl(plane, built.folder, undefined, ...configure, ...more);
    chmodSync(join(files, "istio-token"), 0o600);
  }, 600_000);

  afterEach(() => {
    for (const cleanup of cleanups.splice(0).reverse()) cleanup();
  });

  afterAll(async () => {
    await plane?.stop();
  }, 60_000);

  function identityOf(options: Partial<IdentityOptions> = {}) {
    const events: IdentityEvent[] = [];
    const store = new CertificateStore(join(plane.folder, `identity-${++count}`));
    const identity = new WorkloadIdentity({
      istiod: `localhost:${plane.ports.secureGrpc}`,
      id: ID,
      ca: join(files, "root-cert.pem"),
      token: join(files, "istio-token"),
      clusterId: "Kubernetes",
      store,
      on: (event) => events.push(event),
      backoff: { first: 50, longest: 200 },
      ...options,
    });
    cleanups.push(() => identity.stop());
    const failure = () => eventually("a refusal", () => events.find(({ kind }) => kind === "failed"));
    const reason = async () => {
      const event = await failure();
      return event.kind === "failed" ? event.reason : "";
    };
    return { identity, events, store, reason };
  }

  function streamOf(identity: WorkloadIdentity, token = join(files, "istio-token"), node?: Identity) {
    const sink = new DecodingSink();
    const events: StreamEvent[] = [];
    const stream = new IstiodStream({
      istiod: `localhost:${plane.ports.secureGrpc}`,
      security: { kind: "tls", ca: join(files, "root-cert.pem"), token, identity },
      identity: node ?? {
        ips: ["10.0.0.5"],
        name: `vm${++count}`,
        namespace: "shop",
        serviceAccount: "vm",
        clusterId: "Kubernetes",
      },
      sink,
      on: (event) => events.push(event),
      backoff: { first: 50, longest: 200 },
    });
    cleanups.push(() => stream.stop());
    stream.start();
    return { stream, sink, events };
  }

  test("istioctl's files give a certificate, and the stream goes over mTLS without the token", async () => {
    const { identity, events, store } = identityOf();
    await identity.begin();
    expect(events).toMatchObject([
      { kind: "obtained", id: "spiffe://cluster.local/ns/shop/sa/vm", proof: "token" },
    ]);
    const current = join(store.folder, "current");
    expect(readdirSync(current).sort()).toEqual(["cert-chain.pem", "key.pem", "root-cert.pem"]);
    for (const name of readdirSync(current)) expect(statSync(join(current, name)).mode & 0o777).toBe(0o600);
    expect(readFileSync(join(current, "root-cert.pem"), "utf8").trim()).toBe(
      (await plane.rootCertificate()).trim(),
    );
    const names = [...MEMBERSHIP_FILES];
    const texts = Object.fromEntries(names.map((name) => [name, readFileSync(join(files, name), "utf8")]));
    const read = readMembership(texts, { now: Date.now() });
    if (!("membership" in read)) throw new Error(read.problems.map(formatProblem).join("\n"));
    expect(read.membership).toMatchObject({ id: ID, autoRegisterGroup: "vms", clusterId: "Kubernetes" });
    expect(read.membership.istiod).toEqual({ host: "localhost", port: plane.ports.secureGrpc });
    expect(read.membership.readinessProbe).toEqual({ httpGet: { path: "/ready", port: 8080 } });
    const file = { path: join(plane.folder, "config.yaml"), required: true };
    const kept = { ca: join(files, "root-cert.pem"), token: join(files, "istio-token") };
    writeFileSync(file.path, stringify(settingsOf(read.membership, kept), { keepUndefined: false }));
    const member = nodeIdentity(readConfig({ flags: {}, env: {}, file }), ["10.0.0.9"]);
    const { stream, sink } = streamOf(identity, join(plane.folder, "no-token"), member);
    await eventually("the first commit", () => sink.commits.length > 0 || undefined);
    expect(sink.stored).toContain("listener 10.97.1.1_7000");
    expect(stream.status().lastError).toBeUndefined();
    // The group's name, the address and what the files say reached istiod: it registered the machine.
    const entry = await eventually("the WorkloadEntry", () =>
      plane.kube.get("/apis/networking.istio.io/v1/namespaces/shop/workloadentries/vms-10.0.0.9"),
    );
    expect(entry).toMatchObject({
      spec: { address: "10.0.0.9", serviceAccount: "vm", labels: { app: "vms" } },
    });
  });

  test("it is renewed by the certificate over and over, and the stream moves on without a gap", async () => {
    let stream: IstiodStream | undefined;
    const token = join(plane.folder, "used-once");
    writeFileSync(token, readFileSync(join(files, "istio-token")), { mode: 0o600 });
    const { identity, events } = identityOf({ validity: SHORT, token, renewed: () => stream?.renew() });
    await identity.begin();
    writeFileSync(token, "dead");
    const agent = streamOf(identity, token);
    stream = agent.stream;
    await eventually("the first commit", () => agent.sink.commits.length > 0 || undefined);
    const obtained = () => events.filter(({ kind }) => kind === "obtained");
    await eventually("two renewals", () => obtained().length >= 3 || undefined, 40_000);
    expect(obtained()).toMatchObject([
      { proof: "token" },
      { proof: "certificate" },
      { proof: "certificate" },
    ]);
    await eventually("the move", () => agent.stream.status().connections >= 3 || undefined);
    expect(events.filter(({ kind }) => kind !== "obtained")).toEqual([]);
    expect(agent.events.filter(({ kind }) => kind === "disconnected" || kind === "not-renewed")).toEqual([]);
    expect(agent.sink.calls.filter((call) => call.startsWith("remove"))).toEqual([]);
  });

  test("a restart finds the certificate and needs no token", async () => {
    const { identity, store } = identityOf();
    await identity.begin();
    identity.stop();
    const again = identityOf({ store, token: join(plane.folder, "no-token") });
    await again.identity.begin();
    expect(again.events).toMatchObject([{ kind: "reused" }]);
    expect(again.identity.status().certificate).toEqual(identity.status().certificate);
  });

  test("an expired certificate and a dead token: one line with the command, and a fresh token mends it", async () => {
    const { identity, store } = identityOf({ validity: SHORT });
    await identity.begin();
    identity.stop();
    const token = join(plane.folder, "dead-token");
    writeFileSync(token, "a.e30.c", { mode: 0o600 });
    const late = identityOf({ store, token, clock: () => Date.now() + SHORT * 1000 });
    await late.identity.begin();
    expect(await late.reason()).toMatch(
      new RegExp(
        `^the certificate of spiffe://cluster.local/ns/shop/sa/vm expired at \\S+Z, and there is no new one: istiod at \\S+ refuses the token in ${token}, for .*: write a fresh one with kubectl create token vm --namespace shop --audience istio-ca > ${token} \\(`,
      ),
    );
    expect(late.identity.current()).toBeUndefined();
    // The stream has the same trouble, and the same words for it: it is told once.
    const { stream } = streamOf(late.identity, token);
    const trouble = await eventually("the stream's refusal", () => stream.status().lastError?.text);
    expect(late.events).toContainEqual(expect.objectContaining({ kind: "failed", reason: trouble }));
    writeFileSync(token, await plane.kube.serviceAccountToken("shop", "vm"), { mode: 0o600 });
    await eventually(
      "the certificate",
      () => late.events.some(({ kind }) => kind === "obtained") || undefined,
    );
  });

  test("another CA, another name, a token of another audience or account: each has its own line", async () => {
    const other = join(plane.folder, "other.pem");
    const request =
      "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=other -keyout";
    await output(["openssl", ...request.split(" "), join(plane.folder, "other.key"), "-out", other]);
    const refused = async (options: Partial<IdentityOptions>) => {
      const { identity, reason } = identityOf(options);
      await identity.begin();
      return reason();
    };
    expect(await refused({ ca: other })).toContain(`is not signed by ${other}: pass the mesh's root there`);
    expect(await refused({ istiod: `127.0.0.2:${plane.ports.secureGrpc}` })).toContain("nothing listens at");
    const elsewhere = {
      istiod: `istiod.example:${plane.ports.secureGrpc}`,
      hosts: { "istiod.example": ["127.0.0.1"] },
    };
    expect(await refused(elsewhere)).toContain("is not for istiod.example: reach it by a name in it");
    const token = join(plane.folder, "odd-token");
    writeFileSync(
      token,
      await plane.kube.serviceAccountToken("shop", "vm", "https://kubernetes.default.svc"),
      {
        mode: 0o600,
      },
    );
    expect(await refused({ token })).toContain(
      "it is for audience https://kubernetes.default.svc, not istio-ca: write a fresh one with",
    );
    await plane.kube.apply({
      apiVersion: "v1",
      kind: "ServiceAccount",
      metadata: { name: "other", namespace: "shop" },
    });
    writeFileSync(token, await plane.kube.serviceAccountToken("shop", "other"));
    expect(await refused({ token })).toBe(
      "the certificate that istiod signed can't be used: it is spiffe://cluster.local/ns/shop/sa/other's: --namespace and --service-account must be those of the token",
    );
    expect(await refused({ token: join(plane.folder, "none") })).toContain("can't read the token");
  });

  test("a node of another namespace than its certificate is told which is which", async () => {
    const { identity } = identityOf();
    await identity.begin();
    const node = { ips: ["10.0.0.5"], name: "vm", namespace: "elsewhere", serviceAccount: "vm" };
    const { stream } = streamOf(identity, undefined, node);
    const text = await eventually("the refusal", () => stream.status().lastError?.text);
    expect(text).toContain(
      "refuses us as elsewhere/vm, while the certificate is shop/vm's: --namespace and --service-account must be those of the certificate",
    );
  });

  test("a longer life than istiod allows", async () => {
    const { identity, reason } = identityOf({ validity: 100 * 86_400 });
    await identity.begin();
    expect(await reason()).toContain("set --certificate-life to what it allows");
  });

  test("istiod stopped for longer than the certificate lives: the token gets another, nothing is taken back", async () => {
    let away = 0;
    let stream: IstiodStream | undefined;
    const options: Partial<IdentityOptions> = {
      validity: 600,
      clock: () => Date.now() + away,
      renewed: () => stream?.renew(),
    };
    const { identity, events, store } = identityOf({ ...options, validity: SHORT });
    await identity.begin();
    const first = streamOf(identity);
    await eventually("the first commit", () => first.sink.commits.length > 0 || undefined);
    await plane.stopIstiod("SIGKILL");
    away = SHORT * 1000 + 1_000;
    await eventually("the certificate's end", () => identity.current() === undefined || undefined);
    identity.stop();
    first.stream.stop();
    // Another process goes on with what is kept, and istiod is still away.
    const next = identityOf({ ...options, store });
    const begun = next.identity.begin();
    await begun;
    expect(await next.reason()).toMatch(/expired at \S+Z, and there is no new one: nothing listens at/);
    const second = streamOf(next.identity);
    stream = second.stream;
    await plane.startIstiod();
    await eventually(
      "another certificate",
      () => next.events.some((event) => event.kind === "obtained" && event.proof === "token") || undefined,
    );
    await eventually("the commit", () => second.sink.commits.length > 0 || undefined);
    expect(events.filter(({ kind }) => kind === "failed")).toEqual([]);
    for (const { sink } of [first, second])
      expect(sink.calls.filter((call) => call.startsWith("remove"))).toEqual([]);
  });

  test("a clock that is off is named", async () => {
    const day = 86_400_000;
    const ahead = identityOf({ clock: () => Date.now() + 2 * day });
    await ahead.identity.begin();
    expect(await ahead.reason()).toContain("is about 2 d ahead of istiod's: set it");
    const behind = identityOf({ clock: () => Date.now() - 3_600_000 });
    await behind.identity.begin();
    expect(await behind.reason()).toContain("is about 60 min behind istiod's: set it");
  });

  test("istiod's CA replaced: the new root and a token bring a new certificate and a new stream", async () => {
    let stream: IstiodStream | undefined;
    const ca = join(plane.folder, "roots.pem");
    writeFileSync(ca, await plane.rootCertificate());
    const { identity, events } = identityOf({ ca, renewed: () => stream?.renew() });
    await identity.begin();
    const agent = streamOf(identity);
    stream = agent.stream;
    await eventually("the first commit", () => agent.sink.commits.length > 0 || undefined);
    await plane.stopIstiod("SIGKILL");
    await plane.kube.remove({
      apiVersion: "v1",
      kind: "Secret",
      metadata: { name: "istio-ca-secret", namespace: "istio-system" },
    });
    const before = readFileSync(ca, "utf8");
    await plane.startIstiod();
    const root = await eventually("the new root", async () => {
      const now = await plane.rootCertificate();
      return now.trim() === before.trim() ? undefined : now;
    });
    writeFileSync(join(files, "root-cert.pem"), root);
    writeFileSync(ca, root);
    await eventually(
      "a new certificate",
      () => events.filter(({ kind }) => kind === "obtained").length === 2 || undefined,
      20_000,
    );
    await eventually("the stream", () => agent.stream.status().connections >= 2 || undefined, 20_000);
    expect(identity.roots().trim()).toBe(root.trim());
    expect(agent.sink.calls.filter((call) => call.startsWith("remove"))).toEqual([]);
  });
});
