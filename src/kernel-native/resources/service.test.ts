import { expect, test } from "bun:test";
import { ownCluster, parseClusterName, parseHostPort, serviceOfCluster } from "./service.ts";

test("istiod's cluster names", () => {
  expect(parseClusterName("outbound|80|v1|a.b.svc.cluster.local")).toEqual({
    direction: "outbound",
    port: 80,
    subset: "v1",
    host: "a.b.svc.cluster.local",
  });
  expect(parseClusterName(ownCluster("*.wild", 443))).toMatchObject({
    port: 443,
    subset: "",
    host: "*.wild",
  });
});

test.each([
  "PassthroughCluster",
  "",
  "a|b",
  "a|80|c",
  "outbound|x||h",
  "outbound|70000||h",
  "outbound|-1||h",
])("%p is no such name", (name) => {
  expect(parseClusterName(name)).toBeUndefined();
});

test("the service of a cluster", () => {
  expect(serviceOfCluster("outbound|80|v1|a")).toEqual({ name: "a:80", host: "a", port: 80 });
  expect(serviceOfCluster("BlackHoleCluster")).toEqual({
    name: "BlackHoleCluster",
    host: "BlackHoleCluster",
    port: 0,
  });
});

test.each([
  ["reviews:80", "reviews", 80],
  ["*.wild.internal:7310", "*.wild.internal", 7310],
  ["allow_any", "allow_any", 0],
  ["a:b", "a:b", 0],
  ["a:99999", "a:99999", 0],
  ["a:", "a:", 0],
])("%s", (name, host, port) => {
  expect(parseHostPort(name)).toEqual({ host, port });
});
