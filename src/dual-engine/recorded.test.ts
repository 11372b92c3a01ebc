/** Resources and pushes recorded from a real istiod with ambient on. */
import { expect, test } from "bun:test";
import { type Inbound, mtlsOf } from "../mesh/inbound.ts";
import { Fixture, recordedState, recordedStream } from "./testdata/resources.ts";

const WEB = "outbound|80||web.shop.svc.cluster.local";

function stateOf(name: string, options: ConstructorParameters<typeof Fixture>[0] = {}): Fixture {
  const fixture = new Fixture(options);
  for (const { type, name: resource, bytes } of recordedState(name))
    fixture.engine.upsert(type, resource, bytes);
  fixture.engine.commit();
  return fixture;
}

test("named target ports, an EndpointSlice without pods, automatic addresses, names", () => {
  const fixture = stateOf("rec-authz");
  expect(fixture.endpoints(WEB)).toEqual(["10.10.0.1:8080", "10.10.0.2:8080", "10.50.0.1:8090"]);
  expect(fixture.endpoints("outbound|3306||web.shop.svc.cluster.local")).toEqual([
    "10.10.0.1:3306",
    "10.10.0.2:3307",
  ]);
  expect(fixture.endpoints("outbound|9000||ext.shop.internal").sort()).toEqual([
    "10.20.0.1:9100",
    "10.20.0.3:9100",
  ]);
  expect(fixture.mesh.frontends.get("tcp 240.240.0.1:80")?.service).toBe("sel.vms.internal:80");
  expect(fixture.mesh.frontends.get("tcp [2001:2::2]:443")?.service).toBe("api.example.com:443");
  expect(fixture.mesh.clusters.get("outbound|443||api.example.com")?.pending).toBe(true);
  // Without a table of names they come from the services.
  expect(fixture.mesh.names.get("web.shop.svc.cluster.local")).toEqual({
    host: "web.shop.svc.cluster.local",
    addresses: ["10.96.1.1"],
    aliases: ["web", "web.shop", "web.shop.svc"],
  });
  fixture.engine.close();
});

test("a waypoint on the namespace: services and pods go through it, the one that opted out does not", () => {
  const fixture = stateOf("rec-waypoint");
  expect(fixture.engine.status().waypoints).toEqual([
    { name: "shop/wp.shop.svc.cluster.local", services: 3 },
  ]);
  expect(fixture.mesh.clusters.get(WEB)?.kind).toBe("endpoints");
  expect(fixture.mesh.clusters.get("outbound|9000||ext.shop.internal")).toMatchObject({
    kind: "refuse",
    reason: "no-endpoint",
  });
  expect(fixture.mesh.frontends.get("tcp 10.10.0.1:7000")?.service).toBe(
    "headless.shop.svc.cluster.local:7000",
  );
  fixture.engine.close();
});

test("STRICT: the machine's own workload names the policy that denies plaintext", () => {
  const self = { addresses: ["10.30.0.1"], entry: "we1" };
  const fixture = stateOf("rec-strict", { namespace: "vms", self });
  expect(fixture.engine.own?.uid).toEndWith("/WorkloadEntry/vms/we1");
  const { inbound } = fixture.engine;
  expect(inbound?.unknown).toEqual([]);
  expect(fixture.mesh.inbound).toEqual(inbound?.inbound as Inbound);
  expect(mtlsOf(fixture.mesh.inbound as Inbound, inbound?.inbound.ports[0] ?? 0)).toBe("strict");
  // A workload that is away for a moment opens nothing.
  fixture.remove(fixture.engine.own?.uid ?? "");
  expect(fixture.engine.own).toBeUndefined();
  expect(fixture.mesh.inbound).toEqual(inbound?.inbound as Inbound);
  expect(inbound?.inbound.policies.map(({ name }) => name)).toContain(
    "istio-system/istio_converted_static_strict",
  );
  expect(inbound?.inbound.ports.length).toBeGreaterThan(0);
  fixture.engine.close();
});

for (const name of ["rec-stream-ztunnel", "rec-stream-sidecar"])
  test(`${name}: the pushes one after the other end as the last state alone would`, () => {
    const fixture = new Fixture({ namespace: "vms" });
    const last = new Map<
      string,
      { type: "address" | "authorization" | "names"; name: string; bytes: Uint8Array }
    >();
    for (const { type, resources, removed } of recordedStream(name)) {
      if (type !== "address" && type !== "authorization" && type !== "names") continue;
      for (const { name: resource, bytes } of resources) {
        fixture.engine.upsert(type, resource, bytes);
        last.set(`${type} ${resource}`, { type, name: resource, bytes });
      }
      for (const resource of removed) {
        fixture.engine.remove(type, resource);
        last.delete(`${type} ${resource}`);
      }
      fixture.engine.commit();
    }
    const alone = new Fixture({ namespace: "vms" });
    for (const { type, name: resource, bytes } of last.values()) alone.engine.upsert(type, resource, bytes);
    alone.engine.commit();
    expect(fixture.mesh.clusters.size).toBeGreaterThan(5);
    expect(sorted(fixture)).toEqual(sorted(alone));
    fixture.engine.close();
    alone.engine.close();
  });

function sorted({ mesh, engine }: Fixture): unknown {
  const list = (map: ReadonlyMap<string, unknown>) => [...map].sort(([a], [b]) => (a < b ? -1 : 1));
  return [
    list(mesh.services),
    list(mesh.frontends),
    list(mesh.clusters),
    list(mesh.names),
    mesh.notes,
    engine.inbound,
  ];
}
