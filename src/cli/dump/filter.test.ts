import { describe, expect, test } from "bun:test";
import { toJson } from "../../admin/json.ts";
import { feed, observed, recorded } from "../../kernel-native/testdata/recorded.ts";
import { type Filter, filterDump, isEmpty } from "./filter.ts";

/** A recording of a real istiod, in the form of `kmesh dump received` and `kmesh dump model`. */
const { native } = observed();
feed(native, recorded("v4"));
native.commit();
native.close();
const received = JSON.parse(toJson(native.describe()));
const model = JSON.parse(toJson(native.mesh));

const filter = (more: Partial<Filter>): Filter => ({ types: [], ...more });
const keys = (section: unknown) =>
  Array.isArray(section)
    ? section.map(({ name, match }) => name ?? match).sort()
    : Object.keys((section ?? {}) as object).sort();

describe("the model", () => {
  test("a type alone", () => {
    const found = filterDump(model, filter({ types: ["splits"] }));
    expect(Object.keys(found)).toEqual(["splits"]);
    expect(keys(found.splits)).toEqual(keys(model.splits));
  });

  test("a host and a port, over all sections", () => {
    const found = filterDump(model, filter({ fqdn: "multi.shop", port: 7080 }));
    expect(keys(found.services)).toEqual(["multi.shop.internal:7080"]);
    // A route of another service leads there, too.
    expect(keys(found.frontends)).toContain("tcp 10.97.0.1:7080");
    expect(keys(found.frontends)).not.toContain("tcp 10.97.0.1:7000");
    expect(keys(found.clusters)).toEqual([
      "outbound|7080|v1|multi.shop.internal",
      "outbound|7080|v2|multi.shop.internal",
      "outbound|7080||multi.shop.internal",
    ]);
  });

  test("a subset, a name, an address", () => {
    expect(keys(filterDump(model, filter({ subset: "v2", port: 7080 })).clusters)).toEqual([
      "outbound|7080|v2|multi.shop.internal",
    ]);
    expect(filterDump(model, filter({ name: "10.96.1.1:9000" }))).toEqual({
      frontends: { "tcp 10.96.1.1:9000": model.frontends["tcp 10.96.1.1:9000"] },
    });
    const reached = filterDump(model, filter({ address: "10.97.0.1" }));
    expect(keys(reached.frontends)).toEqual(["tcp 10.97.0.1:7000", "tcp 10.97.0.1:7080"]);
    const led = filterDump(model, filter({ address: "172.31.1.1" }));
    expect(keys(led.clusters)).toContain("outbound|9000||web.shop.svc.cluster.local");
  });

  test("nothing fits, and no filter at all", () => {
    expect(filterDump(model, filter({ port: 1 }))).toEqual({});
    expect(isEmpty(filter({}))).toBe(true);
    expect(isEmpty(filter({ port: 1 }))).toBe(false);
  });
});

describe("what istiod sent", () => {
  test("virtual hosts are picked out of their route configuration", () => {
    const found = filterDump(received, filter({ types: ["routes"], fqdn: "multi.shop", port: 7080 }));
    const routes = found.routes as Record<string, { name: string }[]>;
    expect(routes["7080"]?.map(({ name }) => name)).toEqual(["multi.shop.internal:7080"]);
    expect((received.routes["7080"] as unknown[]).length).toBeGreaterThan(1);
    const whole = filterDump(received, filter({ types: ["routes"], name: "7080" }));
    expect(whole).toEqual({ routes: { "7080": received.routes["7080"] } });
  });

  test("listeners by address, direction and port; names and endpoints by host", () => {
    const listeners = (more: Partial<Filter>) =>
      keys(filterDump(received, filter({ types: ["listeners"], ...more })).listeners);
    expect(listeners({ address: "10.96.1.1", port: 9000 })).toEqual(["10.96.1.1_9000"]);
    expect(listeners({ direction: "inbound" })).toEqual(["virtualInbound"]);
    expect(listeners({ direction: "outbound" })).not.toContain("virtualInbound");
    const host = filterDump(received, filter({ fqdn: "web.shop" }));
    expect(keys(host.names)).toEqual(["web.shop.svc.cluster.local"]);
    expect(keys(host.endpoints).every((name) => name.endsWith("web.shop.svc.cluster.local"))).toBe(true);
  });
});

test("the kernel's tables: matches and targets are texts there", () => {
  const frontend = {
    match: "10.0.0.1:80",
    service: "a.shop:80",
    action: "cluster",
    target: "outbound|80||a.shop",
  };
  const v6 = { match: "[fd00::1]:81", service: "b.shop:81", action: "split", target: "81 b.shop:81" };
  const block = { match: "10.1.0.0/16:80", service: "c.shop:80", action: "pass", target: "" };
  const tables = { frontends: [frontend, v6, block], settings: { shadow: false }, hooks: [] };
  expect(filterDump(tables, filter({ port: 80 }))).toEqual({ frontends: [frontend, block] });
  expect(filterDump(tables, filter({ address: "fd00::1" }))).toEqual({ frontends: [v6] });
  expect(filterDump(tables, filter({ name: "10.1.0.0/16:80" }))).toEqual({ frontends: [block] });
  expect(filterDump(tables, filter({ fqdn: "a.shop" }))).toEqual({ frontends: [frontend] });
});
