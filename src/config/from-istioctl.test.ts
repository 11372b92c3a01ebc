import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { discovery } from "../istiod/discovery.gen.js";
import type { Membership } from "../istiod/join/membership.ts";
import { nodeOf } from "../istiod/node.ts";
import { localityOf, nodeIdentity } from "../machine/node.ts";
import { type Config, readConfig } from "./config.ts";
import { settingsOf } from "./from-istioctl.ts";
import { SETTINGS, type SettingName } from "./settings.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kmesh-member-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** All settings that the files can contain. */
const MEMBER: Membership = {
  id: { trustDomain: "mesh.example", namespace: "shop", serviceAccount: "vm.one" },
  istiod: { host: "istiod-v2.istio-system.svc", port: 15012 },
  ca: { host: "ca.example", port: 443 },
  hosts: new Map([["istiod-v2.istio-system.svc", ["fd00::1", "10.0.0.1"]]]),
  roots: "",
  token: "",
  clusterId: "cluster1",
  network: "net1",
  meshId: "mesh1",
  labels: { app: "vms", "istio-locality": "r1.z1", version: "1.10" },
  workloadName: "vms",
  autoRegisterGroup: "vms",
  serviceIp: "203.0.113.9",
  ports: [{ name: "http", containerPort: 8080 }],
  readinessProbe: { failureThreshold: 3, httpGet: { path: "/ready", port: 8080 } },
  probeLocalhost: true,
  name: "vm1",
  metadata: { TEAM: "blue, green", MORE: { deep: [1, "2"] } },
};

function configOf(member: Membership): Config {
  const ca = join(folder, "root-cert.pem");
  writeFileSync(ca, "");
  const path = join(folder, "config.yaml");
  writeFileSync(
    path,
    stringify(settingsOf(member, { ca, token: "/state/istio-token" }), { keepUndefined: false }),
  );
  return readConfig({ flags: {}, env: {}, file: { path, required: true } });
}

test("the configuration file can say all that istioctl's files say", () => {
  expect(configOf(MEMBER)).toMatchObject({
    istiod: MEMBER.istiod,
    caServer: MEMBER.ca,
    hosts: { "istiod-v2.istio-system.svc": ["fd00::1", "10.0.0.1"] },
    plaintext: false,
    ca: join(folder, "root-cert.pem"),
    token: "/state/istio-token",
    trustDomain: "mesh.example",
    namespace: "shop",
    serviceAccount: "vm.one",
    name: "vm1",
    serviceIp: "203.0.113.9",
    clusterId: "cluster1",
    network: "net1",
    meshId: "mesh1",
    labels: MEMBER.labels,
    workloadName: "vms",
    workloadGroup: "vms",
    workloadEntry: undefined,
    ports: MEMBER.ports,
    readinessProbe: MEMBER.readinessProbe,
    probeLocalhost: true,
    metadata: MEMBER.metadata,
  });
});

test("so can flags and variables, where maps and JSON are texts", () => {
  const fromFile = configOf(MEMBER);
  const settings = Object.entries(settingsOf(MEMBER, { ca: fromFile.ca ?? "", token: "/state/istio-token" }));
  const text = (value: unknown) => (typeof value === "string" ? value : JSON.stringify(value));
  const given = settings.filter(([, value]) => value !== undefined);
  const file = { path: "/dev/null", required: false };
  const flags = Object.fromEntries(
    given.map(([name, value]) => [
      name,
      SETTINGS[name as SettingName].kind === "map" ? [text(value)] : text(value),
    ]),
  );
  expect(readConfig({ flags, env: {}, file })).toEqual({ ...fromFile, file: file.path });
  const env = Object.fromEntries(
    given.map(([name, value]) => [`KMESH_${name.toUpperCase().replaceAll("-", "_")}`, text(value)]),
  );
  expect(readConfig({ flags: {}, env, file })).toEqual({ ...fromFile, file: file.path });
});

test("the node is what the files and the machine say; the address for NAT comes first", () => {
  const node = nodeOf(nodeIdentity(configOf(MEMBER), ["10.0.0.5", "fd00::5"]));
  expect(node.id).toBe("sidecar~203.0.113.9~vm1.shop~shop.svc.cluster.local");
  expect(node.cluster).toBe("vms.shop");
  expect(node.locality).toEqual({ region: "r1", zone: "z1", subZone: "" });
  const decoded = discovery.Node.decode(discovery.Node.encode(node).finish());
  const fields = decoded.metadata?.fields ?? {};
  const texts = Object.fromEntries(
    Object.entries(fields).flatMap(([key, value]) =>
      value.stringValue === undefined ? [] : [[key, value.stringValue]],
    ),
  );
  expect(texts).toMatchObject({
    NAME: "vm1",
    NAMESPACE: "shop",
    SERVICE_ACCOUNT: "vm.one",
    INSTANCE_IPS: "203.0.113.9,10.0.0.5,fd00::5",
    CLUSTER_ID: "cluster1",
    NETWORK: "net1",
    MESH_ID: "mesh1",
    WORKLOAD_NAME: "vms",
    AUTO_REGISTER_GROUP: "vms",
    POD_PORTS: '[{"name":"http","containerPort":8080}]',
    DNS_CAPTURE: "true",
    DISABLE_HBONE_SEND: "true",
    TEAM: "blue, green",
  });
  expect(fields.LABELS?.structValue?.fields?.version?.stringValue).toBe("1.10");
  const probe = fields.PROXY_CONFIG?.structValue?.fields?.readinessProbe?.structValue?.fields;
  expect(probe?.failureThreshold?.numberValue).toBe(3);
  expect(probe?.httpGet?.structValue?.fields?.path?.stringValue).toBe("/ready");
});

test("a machine whose entry stands already says so; no group, no probe", () => {
  const { autoRegisterGroup: _, readinessProbe: __, ...rest } = MEMBER;
  const config = { ...configOf(rest), workloadEntry: "vms-1" };
  const fields = nodeOf(nodeIdentity(config, ["10.0.0.5"])).metadata?.fields ?? {};
  expect(fields.WORKLOAD_ENTRY?.stringValue).toBe("vms-1");
  expect(fields.AUTO_REGISTER_GROUP).toBeUndefined();
  expect(fields.PROXY_CONFIG).toBeUndefined();
});

test("the locality: the setting, else the label, with dots or slashes", () => {
  const nowhere = { region: "", zone: "", subzone: "" };
  const label = (text: string) => localityOf({ locality: nowhere, labels: { "istio-locality": text } });
  expect(label("r.z.s")).toEqual({ region: "r", zone: "z", subzone: "s" });
  expect(label("r.1/z")).toEqual({ region: "r.1", zone: "z", subzone: "" });
  expect(label("")).toBeUndefined();
  const here = { region: "x", zone: "", subzone: "" };
  expect(localityOf({ locality: here, labels: { "istio-locality": "r.z" } })).toEqual(here);
});
