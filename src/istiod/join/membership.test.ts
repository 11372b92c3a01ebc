import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Authority } from "../../../test/lab/authority.ts";
import { formatProblem, type MembershipFile, readMembership } from "./membership.ts";

const NOW = Date.parse("2026-01-01T00:00:00Z");

const LABELS = '{"app":"vms","service.istio.io/canonical-name":"vms"}';
/** As istioctl writes them, shortened. */
const CLUSTER_ENV = `CANONICAL_SERVICE='vms'
ISTIO_INBOUND_PORTS='*'
ISTIO_METAJSON_LABELS='${LABELS}'
ISTIO_META_AUTO_REGISTER_GROUP='vms'
ISTIO_META_CLUSTER_ID='Kubernetes'
ISTIO_META_DNS_CAPTURE='true'
ISTIO_META_MESH_ID=''
ISTIO_META_NETWORK='net1'
ISTIO_META_WORKLOAD_NAME='vms'
ISTIO_NAMESPACE='shop'
ISTIO_SERVICE_CIDR='*'
POD_NAMESPACE='shop'
SERVICE_ACCOUNT='vm'
TRUST_DOMAIN='cluster.local'
`;
const MESH_YAML = `defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  proxyMetadata:
    ISTIO_META_DNS_CAPTURE: "true"
    ISTIO_META_TEAM: blue
    POD_NAMESPACE: shop
  readinessProbe:
    failureThreshold: 3
    httpGet:
      path: /ready
      port: 8080
`;

let root = "";
let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-membership-"));
  root = new Authority(folder).root;
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function token(claims: Record<string, unknown> = {}): string {
  const all = {
    aud: ["istio-ca"],
    sub: "system:serviceaccount:shop:vm",
    exp: NOW / 1000 + 3600,
    ...claims,
  };
  return `x.${Buffer.from(JSON.stringify(all)).toString("base64url")}.x`;
}

const files = (changes: Partial<Record<MembershipFile, string | undefined>> = {}) => ({
  "cluster.env": CLUSTER_ENV,
  "mesh.yaml": MESH_YAML,
  "root-cert.pem": root,
  "istio-token": `${token()}\n`,
  hosts: "172.30.0.1 istiod.istio-system.svc",
  ...changes,
});

function member(changes: Partial<Record<MembershipFile, string>> = {}) {
  const read = readMembership(files(changes), { now: NOW });
  if ("problems" in read) throw new Error(read.problems.map(formatProblem).join("\n"));
  return read.membership;
}

function problems(changes: Partial<Record<MembershipFile, string | undefined>>): string[] {
  const read = readMembership(files(changes), { now: NOW });
  return "problems" in read ? read.problems.map(formatProblem) : [];
}

test("istioctl's files say all that there is to know", () => {
  expect(member()).toEqual({
    id: { trustDomain: "cluster.local", namespace: "shop", serviceAccount: "vm" },
    istiod: { host: "istiod.istio-system.svc", port: 15012 },
    ca: { host: "istiod.istio-system.svc", port: 15012 },
    hosts: new Map([["istiod.istio-system.svc", ["172.30.0.1"]]]),
    roots: root,
    token: token(),
    clusterId: "Kubernetes",
    network: "net1",
    meshId: "",
    labels: { app: "vms", "service.istio.io/canonical-name": "vms" },
    workloadName: "vms",
    autoRegisterGroup: "vms",
    readinessProbe: { failureThreshold: 3, httpGet: { path: "/ready", port: 8080 } },
    probeLocalhost: false,
    metadata: { TEAM: "blue" },
  });
});

test("an empty hosts file, further spellings, another CA and ports are fine", () => {
  const more = `# by hand\nexport CA_ADDR="istiod-v2.istio-system.svc:15012"\nISTIO_SVC_IP=203.0.113.9\nISTIO_META_POD_PORTS='[{"containerPort":80}]'\nPOD_NAME=vm1\nREWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION='true'\nISTIO_METAJSON_MORE='{"A":{"b":1},"NAME":"x"}'\n`;
  const found = member({ hosts: "", "cluster.env": CLUSTER_ENV + more });
  expect(found.hosts.size).toBe(0);
  expect(found.ca.host).toBe("istiod-v2.istio-system.svc");
  expect(found.serviceIp).toBe("203.0.113.9");
  expect(found.ports).toEqual([{ containerPort: 80 }]);
  expect(found.name).toBe("vm1");
  expect(found.probeLocalhost).toBe(true);
  // NAME has a field of its own.
  expect(found.metadata).toEqual({ TEAM: "blue", A: { b: 1 } });
});

test.each([
  ["cluster.env", "cluster.env is missing: copy it from where istioctl wrote it"],
  ["mesh.yaml", "mesh.yaml is missing: copy it from where istioctl wrote it"],
  ["root-cert.pem", "root-cert.pem is missing: copy it from where istioctl wrote it"],
  [
    "istio-token",
    "istio-token is missing: kubectl create token vm --namespace shop --audience istio-ca > istio-token writes a fresh one",
  ],
  ["hosts", "hosts is missing: copy it from where istioctl wrote it"],
])("without %s", (file, problem) => {
  expect(problems({ [file]: undefined })).toContain(problem);
});

test.each([
  [
    "ISTIO_NAMESPACE='shop'",
    "ISTIO_NAMESPACE='Shop!'",
    'cluster.env: ISTIO_NAMESPACE is not a Kubernetes name: "Shop!"',
  ],
  [
    "POD_NAMESPACE='shop'",
    "POD_NAMESPACE='other'",
    "cluster.env: POD_NAMESPACE is other, but ISTIO_NAMESPACE is shop",
  ],
  ["SERVICE_ACCOUNT='vm'", "", "cluster.env: SERVICE_ACCOUNT is missing"],
  [
    "ISTIO_META_CLUSTER_ID='Kubernetes'",
    "ISTIO_META_CLUSTER_ID=''",
    "cluster.env: ISTIO_META_CLUSTER_ID is empty",
  ],
  [LABELS, '{"app":1}', "cluster.env: ISTIO_METAJSON_LABELS is not a JSON object of texts"],
  [LABELS, "{", "cluster.env: ISTIO_METAJSON_LABELS is not a JSON object of texts"],
  [
    "ISTIO_INBOUND_PORTS='*'",
    "ISTIO_SVC_IP='1.2.3'",
    'cluster.env: ISTIO_SVC_IP is not an IP address: "1.2.3"',
  ],
  ["ISTIO_INBOUND_PORTS='*'", "CA_ADDR='istiod'", 'cluster.env: CA_ADDR is not HOST:PORT: "istiod"'],
  [
    "ISTIO_INBOUND_PORTS='*'",
    "ISTIO_META_POD_PORTS='80'",
    "cluster.env: ISTIO_META_POD_PORTS is not a JSON list",
  ],
  ["ISTIO_INBOUND_PORTS='*'", "ISTIO_METAJSON_X='[1]'", "cluster.env: ISTIO_METAJSON_X is not a JSON object"],
  [
    "TRUST_DOMAIN='cluster.local'",
    "TRUST_DOMAIN='a/b'",
    'cluster.env: TRUST_DOMAIN is not a trust domain: "a/b"',
  ],
  [
    "ISTIO_META_AUTO_REGISTER_GROUP='vms'",
    "ISTIO_META_AUTO_REGISTER_GROUP='The VMs'",
    'cluster.env: ISTIO_META_AUTO_REGISTER_GROUP is not a Kubernetes name: "The VMs"',
  ],
  ["ISTIO_INBOUND_PORTS='*'", "what is this", "cluster.env: line 2 is not KEY='value'"],
])("cluster.env with %s become %s", (from, to, problem) => {
  expect(CLUSTER_ENV).toContain(from);
  expect(problems({ "cluster.env": CLUSTER_ENV.replace(from, to) })).toContain(problem);
});

test.each([
  ["{", "mesh.yaml is no YAML: "],
  ["", "mesh.yaml: defaultConfig is missing"],
  ["defaultConfig: {a: 1}", "mesh.yaml: defaultConfig.discoveryAddress is missing"],
  [
    "defaultConfig: {discoveryAddress: istiod}",
    'mesh.yaml: defaultConfig.discoveryAddress is not HOST:PORT: "istiod"',
  ],
  [
    MESH_YAML.replace("blue", "true"),
    "mesh.yaml: defaultConfig.proxyMetadata.ISTIO_META_TEAM is not a text: quote it",
  ],
  [
    MESH_YAML.replace("httpGet", "httpget"),
    "mesh.yaml: defaultConfig.readinessProbe can't be used: httpget is not a field of it (those are httpGet,",
  ],
])("mesh.yaml as %j", (text, problem) => {
  expect(problems({ "mesh.yaml": text })[0]).toStartWith(problem);
});

test("all addresses of a name, and the certificates alone of the roots", () => {
  const hosts =
    "172.30.0.1 istiod.istio-system.svc a\nfd00::1 istiod.istio-system.svc # second\n172.30.0.1 a\n";
  expect(member({ hosts }).hosts).toEqual(
    new Map([
      ["istiod.istio-system.svc", ["172.30.0.1", "fd00::1"]],
      ["a", ["172.30.0.1"]],
    ]),
  );
  const key = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n";
  expect(member({ "root-cert.pem": `# the mesh's\n${root}${key}` }).roots).toBe(root);
});

test("a gateway that is known by a DNS name alone", () => {
  const found = member({ hosts: "LB.cloud.example istiod.istio-system.svc\n" });
  expect(found.hosts).toEqual(new Map([["istiod.istio-system.svc", ["lb.cloud.example"]]]));
  expect(problems({ hosts: "lb.cloud.example istiod\n10.0.0.1 istiod\n" })).toEqual([
    "hosts: line 2 gives istiod a DNS name beside others",
  ]);
});

test("wrong roots, tokens and hosts", () => {
  expect(problems({ "root-cert.pem": "x" })).toEqual(["root-cert.pem holds no PEM certificate"]);
  const broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
  expect(problems({ "root-cert.pem": root + broken })).toEqual([
    "root-cert.pem holds a certificate that can't be read (number 2)",
  ]);
  const fresh =
    ": kubectl create token vm --namespace shop --audience istio-ca > istio-token writes a fresh one";
  for (const [text, reason] of [
    ["", "it is empty"],
    ["word", "it is not a service account token"],
    [token({ exp: NOW / 1000 - 1 }), "it expired at 2025-12-31T23:59:59Z"],
    [token({ aud: ["api"] }), "it is for audience api, not istio-ca"],
    [
      token({ sub: "system:serviceaccount:shop:other" }),
      "it is system:serviceaccount:shop:other's, not system:serviceaccount:shop:vm's",
    ],
  ] as const)
    expect(problems({ "istio-token": text })).toEqual([`istio-token can't be used, for ${reason}${fresh}`]);
  expect(problems({ hosts: "# fine\n\nnowhere istiod\n1.2.3.4\n" })).toEqual([
    "hosts: line 3 is not ADDRESS NAME",
    "hosts: line 4 is not ADDRESS NAME",
  ]);
});

test("with a valid certificate a token may be missing or dead, but not another's", () => {
  const read = (text: string | undefined, namespace = "shop") =>
    readMembership(files({ "istio-token": text }), {
      now: NOW,
      certified: { trustDomain: "cluster.local", namespace, serviceAccount: "vm" },
    });
  for (const text of [undefined, "", token({ exp: NOW / 1000 - 1 })]) {
    expect(read(text)).toMatchObject({ membership: { token: "" } });
    expect(read(text, "other")).toHaveProperty("problems");
  }
  expect(read(token({ aud: ["api"] }))).toHaveProperty("problems");
  expect(read(token())).toMatchObject({ membership: { token: token() } });
});

test("a file has the name under which it was found", () => {
  const read = readMembership(files({ "mesh.yaml": "" }), { now: NOW, paths: { "mesh.yaml": "/etc/mesh" } });
  expect("problems" in read && read.problems.map(formatProblem)).toEqual([
    "/etc/mesh: defaultConfig is missing",
  ]);
});

test("all that is wrong is told at once, and a missing file only once", () => {
  expect(problems({ "cluster.env": undefined, hosts: "x" })).toEqual([
    "cluster.env is missing: copy it from where istioctl wrote it",
    "hosts: line 1 is not ADDRESS NAME",
  ]);
});
