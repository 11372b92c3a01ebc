import { expect, test } from "bun:test";
import { examineConfig } from "../config/config.ts";
import { sourcesOf } from "../config/sources.ts";
import { baggageOf, ownWorkload } from "./workload.ts";

const configOf = (env: Record<string, string>) => {
  const sources = sourcesOf({}, { KMESH_CONFIG: "/dev/null", KMESH_ISTIOD: "istiod:15010", ...env });
  return examineConfig(sources).config;
};

test("baggage has the members of ztunnel, and labels win over names", () => {
  const config = configOf({
    KMESH_NAMESPACE: "shop",
    KMESH_CLUSTER_ID: "east, 1",
    KMESH_WORKLOAD_GROUP: "web",
    KMESH_LABELS: "app=store,version=v2",
  });
  expect(baggageOf(ownWorkload(config, "vm-7"), { region: "eu", zone: "eu-1" })).toBe(
    "k8s.cluster.name=east%2C%201,k8s.namespace.name=shop,k8s.pod.name=web,service.name=store,service.version=v2," +
      "cloud.region=eu,cloud.availability_zone=eu-1",
  );
});

test("a machine without names of its own has the host's, and no locality", () => {
  expect(baggageOf(ownWorkload(configOf({}), "vm-7"), undefined)).toBe(
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.pod.name=vm-7,service.name=vm-7,service.version=latest",
  );
});
