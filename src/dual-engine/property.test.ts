/** Random changes, and random bytes. */
import { expect, test } from "bun:test";
import { Random } from "../../test/lab/random.ts";
import { MalformedResource } from "../istiod/stream/sink.ts";
import { sameCluster } from "../mesh/same.ts";
import { workload } from "./records/workload.gen.js";
import { Fixture, pod, recordedState, service } from "./testdata/resources.ts";

const ROUNDS = 60;

/** A random resource of few names, so that they meet. */
function resource(random: Random): [string, Uint8Array] {
  const name = random.pick(["a", "b", "c", "wp"]);
  if (random.chance(0.4)) {
    const waypoint = { hostname: { namespace: "shop", hostname: "wp.shop" }, hboneMtlsPort: 15008 };
    const scopes = [workload.LoadBalancing.Scope.REGION, workload.LoadBalancing.Scope.ZONE];
    return service(name, {
      namespace: random.pick(["shop", "other"]),
      addresses: random.pick([[], ["10.96.0.1"], ["10.96.0.2", "fd00::2"], ["10.97.0.0/16"]]),
      ports: random.pick([{ 80: 8080 }, { 80: 0, 443: 8443 }, {}]),
      ...(random.chance(0.3) ? { waypoint } : {}),
      ...(random.chance(0.3) ? { loadBalancing: { mode: random.below(4), routingPreference: scopes } } : {}),
    });
  }
  const key = `${random.pick(["shop", "other"])}/${name}.shop`;
  return pod(`p${random.below(6)}`, {
    addresses: random.pick([["10.1.0.1"], ["10.1.0.2"], ["10.1.0.2", "fd01::2"]]),
    services: random.pick([{ [key]: { 80: 8080 } }, { [key]: { 80: 8081, 443: 9 } }, {}]),
    tunnelProtocol: random.below(3),
    status: random.below(2),
    locality: { region: random.pick(["r1", "r2"]), zone: random.pick(["z1", "z2"]) },
    network: random.pick(["", "", "n2"]),
    ...(random.chance(0.2)
      ? { waypoint: { hostname: { namespace: "shop", hostname: "wp.shop" }, hboneMtlsPort: 15008 } }
      : {}),
  });
}

test("changes one at a time end as all at once, and name all that differs", () => {
  for (let seed = 1; seed <= ROUNDS; seed++) {
    const random = new Random(seed);
    const held = new Map<string, Uint8Array>();
    const step = new Fixture().push(service("z", { addresses: ["10.99.0.1"] }));
    held.set(...service("z", { addresses: ["10.99.0.1"] }));
    for (let i = 0; i < 25; i++) {
      const before = new Map(step.mesh.clusters);
      const count = step.published.length;
      if (held.size > 1 && random.chance(0.25)) {
        const name = random.pick([...held.keys()]);
        held.delete(name);
        step.remove(name);
      } else {
        const [name, bytes] = resource(random);
        held.set(name, bytes);
        step.push([name, bytes]);
      }
      const changes = step.published.length > count ? step.published.at(-1) : undefined;
      for (const name of new Set([...before.keys(), ...step.mesh.clusters.keys()])) {
        const [one, other] = [before.get(name), step.mesh.clusters.get(name)];
        const same = one !== undefined && other !== undefined && sameCluster(one, other);
        const named = changes !== undefined && !changes.everything && changes.clusters.has(name);
        expect({ seed, i, name, named }).toEqual({ seed, i, name, named: !same });
      }
    }
    const once = new Fixture().push(...held);
    expect({ seed, mesh: plain(step) }).toEqual({ seed, mesh: plain(once) });
  }
});

function plain({ mesh }: Fixture): unknown {
  const list = (map: ReadonlyMap<string, unknown>) => [...map].sort(([a], [b]) => (a < b ? -1 : 1));
  return [
    list(mesh.services),
    list(mesh.frontends),
    list(mesh.clusters),
    list(mesh.splits),
    list(mesh.names),
  ];
}

test("changed bytes of recorded resources are taken or rejected, and nothing else is thrown", () => {
  const random = new Random(7);
  const resources = recordedState("rec-authz").filter(({ type }) => type === "address");
  let rejected = 0;
  for (let i = 0; i < 3_000; i++) {
    const { name, bytes } = random.pick(resources);
    const copy = bytes.slice(0, random.chance(0.3) ? random.below(bytes.length) : bytes.length);
    for (let flips = random.below(3); flips >= 0 && copy.length > 0; flips--) {
      const at = random.below(copy.length);
      copy[at] = (copy[at] ?? 0) ^ (1 << random.below(8));
    }
    const fixture = new Fixture();
    try {
      fixture.push([name, copy]);
    } catch (error) {
      if (!(error instanceof MalformedResource)) throw error;
      rejected++;
    }
    fixture.engine.close();
  }
  expect(rejected).toBeGreaterThan(300);
});
