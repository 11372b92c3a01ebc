import { describe, expect, test } from "bun:test";
import { Random } from "../../test/lab/random.ts";
import { decodeMesh, encodeMesh, MalformedMesh } from "./encoding.ts";
import { type Endpoint, EndpointList, MAX_TRANSPORTS } from "./endpoint-list.ts";
import { frontendKey } from "./frontend.ts";
import { type Inbound, MTLS_MODES } from "./inbound.ts";
import {
  type Balance,
  type Cluster,
  type Frontend,
  type Locality,
  type Match,
  type Mesh,
  NO_EJECTION,
  type Note,
  REASONS,
  type Target,
} from "./model.ts";
import type { Transport } from "./transport.ts";

function encoded(mesh: Mesh): Uint8Array {
  return Buffer.concat([...encodeMesh(mesh)].map((part) => part.slice()));
}

/** Any mesh that the model allows, also ones that no istiod would send. */
function meshOf(random: Random, size: number): Mesh {
  const some = <T>(make: () => T, most = size): T[] => Array.from({ length: random.below(most + 1) }, make);
  const name = () =>
    random.pick(["", "a", "outbound|80||shop", "ü€😀", "x".repeat(300), `n${random.below(99)}`]);
  const whole = () => random.pick([0, 1, 127, 128, 140, 65_535, 2 ** 31, 2 ** 32 - 1, 2 ** 53 - 1]);
  const address = () =>
    random.chance(0.5)
      ? `10.${random.below(256)}.0.${random.below(256)}`
      : `fd00::${(random.below(60_000) + 1).toString(16)}`;
  const note = (): Note => ({
    kind: random.pick(["layer7", "plaintext", "not-enforced", "refused", "conflict"]),
    text: name(),
  });
  const target = (): Target =>
    random.pick<Target>([
      { kind: "cluster", cluster: name() },
      { kind: "split", split: name() },
      { kind: "passthrough" },
      { kind: "refuse", reason: random.pick(REASONS) },
    ]);
  const match = (): Match =>
    random.pick<Match>([
      { kind: "address", address: address(), port: random.below(65_536) },
      { kind: "prefix", address: address(), length: random.below(129), port: random.below(65_536) },
      { kind: "port", port: random.below(65_536) },
    ]);
  const endpoint = (): Endpoint => ({
    address: address(),
    port: random.below(65_536),
    weight: random.below(2 ** 32),
    healthy: random.chance(0.5),
    ...random.pick([{}, {}, { transport: 1 }, { transport: MAX_TRANSPORTS }]),
  });
  const locality = (): Locality => ({
    region: name(),
    zone: name(),
    subzone: name(),
    priority: whole(),
    weight: whole(),
    endpoints: EndpointList.of(some(endpoint)),
  });
  const balance = (): Balance =>
    random.pick<Balance>([
      { policy: "round-robin" },
      { policy: "random" },
      { policy: "least-request" },
      { policy: "ring-hash", tableSize: whole() },
      { policy: "maglev", tableSize: whole() },
    ]);
  const san = () => ({ kind: random.pick(["exact", "prefix", "suffix"] as const), value: name() });
  const transport = (): Transport =>
    random.pick<() => Transport>([
      () => ({ kind: "istio", sni: name(), sans: some(san, 3) }),
      () => ({ kind: "hbone", authority: name(), port: whole(), sans: some(san, 3) }),
      () => ({
        kind: "hbone",
        authority: name(),
        port: 15008,
        sans: [],
        inner: { authority: name(), sans: some(san, 3) },
      }),
      () => ({
        kind: "tls",
        sni: name(),
        sans: some(san, 3),
        roots: name(),
        certificate: name(),
        key: name(),
        alpn: some(name, 3),
      }),
      () => ({ kind: "proxy-protocol", version: 1 }),
      () => ({ kind: "proxy-protocol", version: 2, over: transport() }),
    ])();
  const cluster = (): Cluster => ({
    name: name(),
    service: name(),
    ...random.pick<Pick<Cluster, "kind" | "port">>([
      { kind: "endpoints", port: 0 },
      { kind: "passthrough", port: 0 },
      { kind: "refuse", port: 0 },
      { kind: "port-override", port: random.below(65536) },
    ]),
    reason: random.pick(REASONS),
    balance: balance(),
    localities: some(locality, 3),
    localityWeighted: random.chance(0.5),
    overprovisioning: random.pick([140, 0.5]),
    panicThreshold: random.pick([0, 50, 33.3, -1]),
    maxConnections: whole(),
    ejection: random.pick([
      NO_EJECTION,
      { after: random.below(99) + 1, base: whole(), longest: whole(), percent: whole(), enforcing: whole() },
    ]),
    transports: some(transport, 3),
    pending: random.chance(0.5),
  });
  const frontend = (): Frontend => ({ match: match(), protocol: "tcp", service: name(), target: target() });
  const named = () => ({ host: name(), addresses: some(name, 3), aliases: some(name, 3) });
  const split = () => ({ name: name(), shares: some(() => ({ cluster: name(), weight: whole() }), 4) });
  const service = () => ({ name: name(), host: name(), port: whole(), notes: some(note, 3) });
  const inbound = (): Inbound => ({
    ports: some(() => random.below(65536), 3),
    mtls: {
      default: random.pick(MTLS_MODES),
      ports: some(() => ({ port: random.below(65536), mode: random.pick(MTLS_MODES) }), 2),
    },
    policies: some(
      () => ({
        name: name(),
        action: random.pick(["allow", "deny"] as const),
        rules: some(() => ({ name: name(), when: { kind: "source" as const, prefixes: ["10.0.0.0/8"] } }), 2),
      }),
      3,
    ),
  });
  return {
    services: new Map(some(service).map((each) => [each.name, each])),
    frontends: new Map(some(frontend).map((each) => [frontendKey(each), each])),
    names: new Map(some(named).map((each) => [each.host, each])),
    splits: new Map(some(split).map((each) => [each.name, each])),
    clusters: new Map(some(cluster).map((each) => [each.name, each])),
    fallback: target(),
    notes: some(note, 3),
    ...(random.chance(0.5) ? { inbound: inbound() } : {}),
  };
}

describe("a mesh comes back as it was", () => {
  for (let seed = 0; seed < 200; seed++) {
    test(`seed ${seed}`, () => {
      const mesh = meshOf(new Random(seed), seed % 20);
      expect(decodeMesh(encoded(mesh))).toEqual(mesh);
    });
  }
});

test("a mesh of several parts is that of the moment of the call, though its maps change meanwhile", () => {
  const mesh = meshOf(new Random(1), 5);
  const endpoints = EndpointList.of([{ address: "10.0.0.1", port: 80, weight: 1, healthy: true }]);
  for (let i = 0; i < 5_000; i++) {
    const [each] = meshOf(new Random(i + 2), 8).clusters.values();
    const base = each ?? { ...meshOf(new Random(3), 9).clusters.values().next().value };
    const localities = [{ region: "", zone: "", subzone: "", priority: 0, weight: 0, endpoints }];
    mesh.clusters.set(`c${i}`, { ...base, name: `c${i}`, localities } as Cluster);
  }
  const before = copyOf(mesh);
  const parts: Uint8Array[] = [];
  for (const part of encodeMesh(mesh)) {
    parts.push(part.slice());
    mesh.clusters.clear();
    mesh.frontends.clear();
    mesh.notes = [];
  }
  expect(parts.length).toBeGreaterThan(2);
  expect(Math.max(...parts.map(({ length }) => length))).toBeLessThan(100_000);
  expect(decodeMesh(Buffer.concat(parts))).toEqual(before);
  // A second where nobody else works.
}, 30_000);

test("cut anywhere, or with a byte more, it is refused", () => {
  const bytes = encoded(meshOf(new Random(7), 4));
  expect(bytes.length).toBeGreaterThan(500);
  for (let length = 0; length < bytes.length; length++) {
    expect(() => decodeMesh(bytes.subarray(0, length))).toThrow(MalformedMesh);
  }
  expect(() => decodeMesh(Buffer.concat([bytes, new Uint8Array(1)]))).toThrow(MalformedMesh);
});

test("bytes that are no mesh are refused or make another one, and never end otherwise", () => {
  const bytes = encoded(meshOf(new Random(11), 6));
  const random = new Random(12);
  let refused = 0;
  for (let round = 0; round < 3_000; round++) {
    const broken = bytes.slice();
    for (let i = random.below(4); i >= 0; i--) broken[random.below(broken.length)] = random.below(256);
    try {
      decodeMesh(broken);
    } catch (error) {
      expect(error).toBeInstanceOf(MalformedMesh);
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(500);
});

function copyOf(mesh: Mesh): Mesh {
  return { ...mesh, clusters: new Map(mesh.clusters), frontends: new Map(mesh.frontends) };
}

describe("bytes of earlier versions", () => {
  // Written by the encoder of version 3; version 2 lacks the list of names at the end.
  const version3 = Buffer.from(
    "0103020004733a38300173510102000163010101010200017200000401020200000000000000000000ffff0a000001901f010001000000018d01010101010101",
    "hex",
  );
  for (const [version, bytes] of [
    [3, version3],
    [2, version3.subarray(0, -1)],
  ] as const) {
    test(`${version}: endpoints in plaintext`, () => {
      const mesh = decodeMesh(bytes, version);
      const cluster = mesh.clusters.get("c");
      expect(cluster?.transports).toEqual([]);
      expect(cluster?.pending).toBe(false);
      expect(cluster?.localities[0]?.endpoints.toJSON()).toEqual([
        { address: "10.0.0.1", port: 8080, weight: 1, healthy: true },
      ]);
      expect(decodeMesh(encoded(mesh))).toEqual(mesh);
    });
  }
});
