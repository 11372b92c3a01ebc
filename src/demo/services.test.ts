import { expect, test } from "bun:test";
import { manyServices, parseDemoMesh } from "./services.ts";

const service = (fields: string) => `services: [{ host: a.demo, port: 80, ${fields} }]`;

test("what is left out has its default", () => {
  const text = service('addresses: [10.0.0.1, "FD00:0::1"], endpoints: [{ address: 10.1.0.1, port: 8080 }]');
  expect(parseDemoMesh(text)).toEqual({
    services: [
      {
        host: "a.demo",
        addresses: ["10.0.0.1", "fd00::1"],
        port: 80,
        endpoints: [{ address: "10.1.0.1", port: 8080 }],
      },
    ],
  });
});

test.each([
  ["", "services: expected a value, found nothing"],
  ["services: {}", "services: expected a list, found {}"],
  ["outbound: NO\nservices: []", "outbound: expected one of ALLOW_ANY, REGISTRY_ONLY"],
  ["service: []", 'the file: "service" is unknown here; known are outbound, services'],
  ["services: [{ host: a, port: 0 }]", "services[0].port: expected a whole number from 1 to 65535, found 0"],
  [service("addresses: [here]"), 'services[0].addresses[0]: "here" is not an IP address'],
  [service("protocol: http"), "needs addresses"],
  [service("protocol: http, addresses: [10.0.0.0/8]"), "needs protocol tcp"],
  [service("mtls: strict"), "services[0].mtls: expected one of istio, hbone"],
  [service("balance: best"), "services[0].balance: expected one of least-request"],
  [service("endpoints: [{ address: 10.1.0.1 }]"), "services[0].endpoints[0].port: expected a value"],
  [
    service("endpoints: [{ address: 10.1.0.1, port: 1, weight: 0 }]"),
    "weight: expected a whole number from 1",
  ],
  [service("split: { v9: 1 }"), "a.demo has no endpoint of subset v9"],
  ["services: [{ host: a, port: 1 }, { host: a, port: 1 }]", "a:1 is there twice"],
  [
    "services: [{ host: a, port: 1 }, { host: b, port: 1, protocol: http, addresses: [10.0.0.1] }]",
    "services: a needs addresses, since HTTP services have port 1",
  ],
])("%j is refused", (text, message) => {
  expect(() => parseDemoMesh(text)).toThrow(message);
});

test("a large mesh has distinct hosts and addresses", () => {
  const { services } = manyServices(1_000, 3);
  expect(new Set(services.map(({ host }) => host)).size).toBe(1_000);
  expect(new Set(services.flatMap(({ addresses }) => addresses)).size).toBe(1_000);
  const endpoints = services.flatMap((service) => service.endpoints.map(({ address }) => address));
  expect(new Set(endpoints).size).toBe(3_000);
});
