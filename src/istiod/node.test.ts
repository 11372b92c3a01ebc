import { expect, test } from "bun:test";
import { discovery } from "./discovery.gen.js";
import { nodeId, nodeOf, parseLocality, usableAddresses } from "./node.ts";

const IDENTITY = { ips: ["fe80::1", "10.0.0.5", "fd00::5"], name: "vm1", namespace: "shop" };

const metadataOf = (node: ReturnType<typeof nodeOf>) => node.metadata?.fields ?? {};

test("the id has the first usable address", () => {
  expect(nodeId(IDENTITY)).toBe("sidecar~10.0.0.5~vm1.shop~shop.svc.cluster.local");
});

test("metadata has istiod's value types: joined lists, booleans as strings, labels as a struct", () => {
  const node = nodeOf({
    ...IDENTITY,
    serviceAccount: "vm",
    network: "n1",
    clusterId: "Kubernetes",
    labels: { app: "x" },
    locality: { region: "r", zone: "z", subzone: "s" },
  });
  expect(metadataOf(node)).toMatchObject({
    NAME: { stringValue: "vm1" },
    NAMESPACE: { stringValue: "shop" },
    SERVICE_ACCOUNT: { stringValue: "vm" },
    INSTANCE_IPS: { stringValue: "10.0.0.5,fd00::5" },
    DNS_CAPTURE: { stringValue: "true" },
    DISABLE_HBONE_SEND: { stringValue: "true" },
    CLUSTER_ID: { stringValue: "Kubernetes" },
    NETWORK: { stringValue: "n1" },
    LABELS: { structValue: { fields: { app: { stringValue: "x" } } } },
  });
  expect(node.locality).toEqual({ region: "r", zone: "z", subZone: "s" });
  const decoded = discovery.Node.decode(discovery.Node.encode(node).finish());
  expect(decoded.metadata?.fields?.DNS_CAPTURE?.stringValue).toBe("true");
});

test("istiod is told how peers reach this machine: labels of the entry that it makes, and HBONE", () => {
  const told = (reach?: { hbone: boolean; mtls: boolean }) => {
    const node = nodeOf({ ...IDENTITY, autoRegisterGroup: "vms", ...(reach ? { reach } : {}) });
    const { ENABLE_HBONE, LABELS } = metadataOf(node);
    return [
      ENABLE_HBONE?.stringValue,
      LABELS?.structValue?.fields?.["security.istio.io/tlsMode"]?.stringValue,
    ];
  };
  expect(told()).toEqual([undefined, "disabled"]);
  expect(told({ hbone: true, mtls: false })).toEqual(["true", "disabled"]);
  expect(told({ hbone: true, mtls: true })).toEqual(["true", "istio"]);
  // An entry of the operator's has labels of the operator's.
  expect(metadataOf(nodeOf({ ...IDENTITY, reach: { hbone: false, mtls: true } })).LABELS).toBeUndefined();
});

test("what was not given is not sent", () => {
  const keys = Object.keys(metadataOf(nodeOf(IDENTITY))).sort();
  expect(keys).toEqual([
    "DISABLE_HBONE_SEND",
    "DNS_CAPTURE",
    "INSTANCE_IPS",
    "ISTIO_VERSION",
    "NAME",
    "NAMESPACE",
  ]);
});

test("addresses that peers can't reach are left out", () => {
  const odd = [
    "127.0.0.1",
    "169.254.1.1",
    "0.0.0.0",
    "::",
    "::1",
    "fe80::1%eth0",
    "fe80::2",
    "ff02::1",
    "224.0.0.1",
  ];
  expect(usableAddresses([...odd, "10.0.0.5", "FD00::5", "10.0.0.5", "eth0"])).toEqual([
    "10.0.0.5",
    "fd00::5",
  ]);
});

test("an identity without a usable address or with an impossible name is refused with the next step", () => {
  expect(() => nodeOf({ ...IDENTITY, ips: ["127.0.0.1"] })).toThrow("give one with --ip");
  expect(() => nodeOf({ ...IDENTITY, name: "a~b" })).toThrow('"a~b" can\'t be the name of this machine');
});

test("localities", () => {
  expect(parseLocality("r/z/s")).toEqual({ region: "r", zone: "z", subzone: "s" });
  expect(parseLocality("r")).toEqual({ region: "r", zone: "", subzone: "" });
  for (const wrong of ["", "/z", "r//s", "r/z/s/x"])
    expect(() => parseLocality(wrong)).toThrow("REGION/ZONE/SUBZONE");
});
