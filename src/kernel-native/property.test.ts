/** Generated configurations: any order and any batches give the same mesh, and changes name what differs. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { Random } from "../../test/lab/random.ts";
import { MalformedResource, type ResourceType } from "../istiod/stream/sink.ts";
import { canonicalAddress } from "../mesh/address.ts";
import { frontendKey } from "../mesh/frontend.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import { KernelNative } from "./kernel-native.ts";
import { ownCluster } from "./resources/service.ts";
import { recorded } from "./testdata/recorded.ts";
import {
  catchAll,
  chain,
  cluster,
  endpoints,
  type GivenChain,
  listener,
  names,
  routes,
  toCluster,
  toShares,
} from "./testdata/resources.ts";

// Thousands of meshes, also on a machine that is busy.
setDefaultTimeout(60_000);

type Resource = [ResourceType, string, Uint8Array];

const HOSTS = ["a.shop", "b.shop", "c.shop", "d.shop", "*.wild"];
const PORTS = [80, 81, 443];
const ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
const CLUSTERS = [
  ...HOSTS.flatMap((host) => PORTS.map((port) => ownCluster(host, port))),
  "outbound|80|v1|a.shop",
  "outbound|80|v2|a.shop",
  "PassthroughCluster",
  "BlackHoleCluster",
];

/** One resource of a small world, so that they meet each other. */
function resource(random: Random): Resource {
  const name = random.pick(CLUSTERS);
  switch (random.below(8)) {
    case 0:
    case 1: {
      const type = random.pick([3, 3, 3, 4]);
      return [
        "cluster",
        name,
        cluster(name, {
          type,
          lbPolicy: random.pick([0, 1, 2, 5]),
          ...(random.chance(0.2) ? { connectTimeout: { seconds: 3 } } : {}),
        }),
      ];
    }
    case 2:
    case 3:
      return [
        "endpoints",
        name,
        endpoints(
          name,
          Array.from({ length: random.below(3) }, () => ({
            region: random.pick(["", "r1"]),
            priority: random.below(2),
            endpoints: Array.from({ length: random.below(4) }, () => ({
              address: random.pick(ADDRESSES),
              port: 80,
              weight: 1 + random.below(3),
              health: random.pick([0, 1, 2]),
              tls: random.chance(0.3),
              workload: random.pick([";;;;", "w;shop;w;;Kubernetes"]),
            })),
          })),
        ),
      ];
    case 4: {
      const address = random.pick(ADDRESSES);
      const chains: GivenChain[] = Array.from({ length: 1 + random.below(2) }, () => randomChain(random));
      const more = random.chance(0.3)
        ? { defaultFilterChain: chain({ cluster: random.pick(CLUSTERS) }) }
        : {};
      return ["listener", ...listener(address, random.pick(PORTS), chains, more)];
    }
    case 5: {
      if (random.chance(0.3))
        return [
          "listener",
          ...catchAll(random.pick(["PassthroughCluster", "BlackHoleCluster", "outbound|80||a.shop"])),
        ];
      const port = random.pick(PORTS);
      const chains: GivenChain[] = [{ routes: String(port) }];
      if (random.chance(0.5)) chains.unshift(randomChain(random));
      return ["listener", ...listener("0.0.0.0", port, chains)];
    }
    case 6: {
      const port = random.pick(PORTS);
      const hosts = random.shuffled(HOSTS).slice(0, random.below(4));
      return [
        "route",
        String(port),
        routes(
          String(port),
          hosts.map((host) => ({
            name: `${host}:${port}`,
            domains: [
              ...(random.chance(0.3) ? [`*.${host}`] : []),
              ...(random.chance(0.6)
                ? [random.pick(["10.0.0.1", "10.0.0.2", "[fd00::1]", "10.1.0.0/16"])]
                : []),
            ],
            routes: random.pick([
              [toCluster(ownCluster(host, port))],
              [
                toShares(
                  [random.pick(CLUSTERS), 1 + random.below(9)],
                  [random.pick(CLUSTERS), 1 + random.below(9)],
                ),
              ],
              [{ match: { path: "/x" }, route: { cluster: "x" } }],
              [
                toCluster(random.pick(CLUSTERS), {
                  hashPolicy: [{ connectionProperties: { sourceIp: true } }],
                }),
              ],
            ]),
          })),
        ),
      ];
    }
    default:
      return [
        "names",
        "",
        names(
          Object.fromEntries(
            HOSTS.filter(() => random.chance(0.5)).map((host) => [host, [random.pick(ADDRESSES)]]),
          ),
        ),
      ];
  }
}

function randomChain(random: Random): GivenChain {
  return random.pick<GivenChain>([
    { cluster: random.pick(CLUSTERS) },
    {
      shares: [
        [random.pick(CLUSTERS), 1],
        [random.pick(CLUSTERS), 2],
      ],
      sourceIpHash: random.chance(0.5),
    },
    { cluster: random.pick(CLUSTERS), prefixes: ["10.0.0.0/30"] },
    { cluster: random.pick(CLUSTERS), serverNames: ["*.x"], transport: "tls" },
  ]);
}

/** The last resource of each type and name: what a control plane holds in the end. */
function latest(resources: Resource[]): Resource[] {
  return [...new Map(resources.map((one) => [`${one[0]} ${one[1]}`, one])).values()];
}

const lookup = () => Promise.resolve({ addresses: [], ttl: 60 });

function fromScratch(resources: Resource[]): string {
  const native = new KernelNative({ allowPlaintext: false, lookup, publish: () => undefined });
  for (const one of resources) native.upsert(...one);
  native.commit();
  native.close();
  return picture(native.mesh);
}

/** A mesh as text, whatever the order of its maps. */
function picture(mesh: Mesh): string {
  const sorted = (map: Map<string, unknown>) => [...map].sort(([a], [b]) => (a < b ? -1 : 1));
  return JSON.stringify({
    ...mesh,
    services: sorted(mesh.services),
    frontends: sorted(mesh.frontends),
    splits: sorted(mesh.splits),
    clusters: sorted(mesh.clusters),
  });
}

/** What must hold of every mesh, whatever was configured. */
function checkMesh(mesh: Mesh): void {
  const known = (name: string) => expect(mesh.services.has(name) ? "" : name).toBe("");
  for (const [key, frontend] of mesh.frontends) {
    expect(frontendKey(frontend)).toBe(key);
    known(frontend.service);
    if (frontend.target.kind === "split") expect(mesh.splits.has(frontend.target.split)).toBe(true);
    if (frontend.match.kind !== "port")
      expect(canonicalAddress(frontend.match.address)).toBe(frontend.match.address);
  }
  for (const [name, split] of mesh.splits) {
    expect(split.name).toBe(name);
    expect(split.shares.length).toBeGreaterThan(1);
    for (const { weight } of split.shares) expect(Number.isInteger(weight) && weight > 0).toBe(true);
  }
  for (const [name, one] of mesh.clusters) {
    expect(one.name).toBe(name);
    known(one.service);
    expect(one.kind === "refuse").toBe(one.reason !== "none");
    const seen = new Set<string>();
    for (const { endpoints: list, priority } of one.localities) {
      expect(list.length).toBeGreaterThan(0);
      expect(priority).toBeGreaterThanOrEqual(0);
      for (const { address, port, weight } of list) {
        expect(weight).toBeGreaterThan(0);
        expect(seen.has(`${address} ${port}`)).toBe(false);
        seen.add(`${address} ${port}`);
      }
    }
  }
  for (const [name, service] of mesh.services) expect(service.name).toBe(name);
}

/** A mirror that believes nothing but the changes. */
class Mirror {
  readonly parts: Record<string, Map<string, string>> = {
    services: new Map(),
    frontends: new Map(),
    splits: new Map(),
    clusters: new Map(),
  };

  apply(mesh: Mesh, changes: Changes): void {
    for (const part of ["services", "frontends", "splits", "clusters"] as const) {
      if (changes.everything) this.parts[part]?.clear();
      const mine = this.parts[part] as Map<string, string>;
      const named = changes.everything ? [...mesh[part].keys()] : [...changes[part]];
      for (const name of named) {
        const now = JSON.stringify(mesh[part].get(name));
        // What is named has to differ.
        expect(`${part} ${name} ${mine.get(name)}`).not.toBe(`${part} ${name} ${now}`);
        if (now === undefined) mine.delete(name);
        else mine.set(name, now);
      }
    }
  }

  check(mesh: Mesh): void {
    for (const part of ["services", "frontends", "splits", "clusters"] as const) {
      const theirs = new Map([...mesh[part]].map(([name, value]) => [name, JSON.stringify(value)]));
      expect(this.parts[part]).toEqual(theirs);
    }
  }
}

describe("generated configurations", () => {
  test("any order gives the same mesh", () => {
    for (let seed = 0; seed < 150; seed++) {
      const random = new Random(seed);
      const world = latest(Array.from({ length: 40 }, () => resource(random)));
      const picture = fromScratch(world);
      for (let i = 0; i < 3; i++) expect(fromScratch(random.shuffled(world))).toBe(picture);
    }
  });

  test("a mesh kept up to date is the one from scratch, and its changes say all that differs and nothing else", () => {
    for (let seed = 0; seed < 60; seed++) {
      const random = new Random(1000 + seed);
      const held = new Map<string, Resource>();
      const mirror = new Mirror();
      const native = new KernelNative({
        allowPlaintext: false,
        lookup,
        publish: (mesh, changes) => mirror.apply(mesh, changes),
      });
      for (let push = 0; push < 25; push++) {
        for (let i = random.below(6); i >= 0; i--) {
          if (held.size > 0 && random.chance(0.3)) {
            const [key, [type, name]] = random.pick([...held]);
            native.remove(type, name);
            held.delete(key);
            continue;
          }
          const one = resource(random);
          native.upsert(...one);
          held.set(`${one[0]} ${one[1]}`, one);
        }
        native.commit();
        checkMesh(native.mesh);
        mirror.check(native.mesh);
        expect(picture(native.mesh)).toBe(fromScratch([...held.values()]));
      }
      native.close();
    }
  });

  test("what is wanted is what clusters and listeners name", () => {
    for (let seed = 0; seed < 50; seed++) {
      const random = new Random(5000 + seed);
      const one = new KernelNative({ allowPlaintext: false, lookup, publish: () => undefined });
      const held = new Map<string, Resource>();
      for (let i = 0; i < 60; i++) {
        const given = resource(random);
        const key = `${given[0]} ${given[1]}`;
        if (random.chance(0.25)) {
          one.remove(given[0], given[1]);
          held.delete(key);
        } else {
          one.upsert(...given);
          held.set(key, given);
        }
      }
      const other = new KernelNative({ allowPlaintext: false, lookup, publish: () => undefined });
      for (const given of held.values()) other.upsert(...given);
      for (const type of ["endpoints", "route"] as const) {
        expect([...one.wanted(type)].sort()).toEqual([...other.wanted(type)].sort());
      }
    }
  });
});

describe("mutated recordings", () => {
  test("each is taken or refused as malformed; the mesh stays whole", () => {
    const random = new Random(42);
    const responses = recorded("v4");
    const native = new KernelNative({ allowPlaintext: false, lookup, publish: () => undefined });
    let refused = 0;
    let taken = 0;
    for (let round = 0; round < 30; round++) {
      for (const { type, resources } of responses) {
        for (const { name, bytes } of resources) {
          const mutated = Buffer.from(bytes);
          for (let i = random.below(4); i >= 0; i--)
            mutated[random.below(mutated.length)] = random.below(256);
          const cut = random.chance(0.2) ? mutated.subarray(0, random.below(mutated.length)) : mutated;
          try {
            native.upsert(type, name, cut);
            taken++;
          } catch (error) {
            if (!(error instanceof MalformedResource)) throw error;
            expect(error.resource).toBe(name);
            refused++;
          }
        }
      }
      native.commit();
      checkMesh(native.mesh);
    }
    native.close();
    expect(refused).toBeGreaterThan(1_000);
    expect(taken).toBeGreaterThan(1_000);
  });
});
