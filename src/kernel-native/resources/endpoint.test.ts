import { describe, expect, test } from "bun:test";
import { Random } from "../../../test/lab/random.ts";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { WorkloadIndex } from "../../mesh/workload.ts";
import { endpoints, type GivenLocality, loadAssignment } from "../testdata/resources.ts";
import { flattenEndpoints, readAssignment } from "./endpoint.ts";
import { envoy } from "./envoy.gen.js";

const NAME = "outbound|80||a";
const flatten = (localities: GivenLocality[], allowPlaintext = false) =>
  flattenEndpoints(NAME, endpoints(NAME, localities), allowPlaintext);
const at = (address: string, more = {}) => ({ address, port: 80, ...more });
const encode = (assignment: envoy.ClusterLoadAssignment.$Properties) =>
  envoy.ClusterLoadAssignment.encode({ clusterName: NAME, ...assignment }).finish();

/** As JSON shows it: lists of endpoints are packed. */
const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

describe("endpoints", () => {
  test("sorted by priority and locality, then address and port; weight 1 when none or 0 is given", () => {
    const record = flatten([
      { region: "r2", weight: 9, endpoints: [at("10.0.0.9", { weight: 0 })] },
      { region: "r0", priority: 1, endpoints: [at("10.0.0.5")] },
      {
        region: "r1",
        zone: "z",
        endpoints: [at("10.0.0.2"), at("10.0.0.1", { port: 81, weight: 7 }), at("10.0.0.1")],
      },
    ]);
    expect(record.localities.map(({ region, priority, weight }) => [region, priority, weight])).toEqual([
      ["r1", 0, 0],
      ["r2", 0, 9],
      ["r0", 1, 0],
    ]);
    expect(plain(record.localities[0]?.endpoints)).toEqual([
      { address: "10.0.0.1", port: 80, weight: 1, healthy: true },
      { address: "10.0.0.1", port: 81, weight: 7, healthy: true },
      { address: "10.0.0.2", port: 80, weight: 1, healthy: true },
    ]);
    expect(record.localities[1]?.endpoints.weight(0)).toBe(1);
    expect(record.overprovisioning).toBe(140);
  });

  test("health: unknown, healthy and degraded take traffic; unhealthy, draining and timeout don't", () => {
    const given = [0, 1, 2, 3, 4, 5].map((health) => at(`10.0.0.${health}`, { health }));
    const { localities } = flatten([{ endpoints: given }]);
    expect(localities[0]?.endpoints.map(({ healthy }) => healthy)).toEqual([
      true,
      true,
      false,
      false,
      false,
      true,
    ]);
  });

  test("addresses are canonical", () => {
    const { localities } = flatten([{ endpoints: [at("FD00:0:0::1"), at("::ffff:10.0.0.1")] }]);
    expect(localities[0]?.endpoints.map(({ address }) => address)).toEqual(["10.0.0.1", "fd00::1"]);
  });

  test("2b.11 an endpoint repeated counts once, and its locality's weight with it", () => {
    const thrice = [
      at("10.0.0.1", { weight: 2 }),
      at("10.0.0.1", { weight: 2 }),
      at("10.0.0.1", { weight: 2 }),
    ];
    const record = flatten([{ weight: 7, endpoints: [...thrice, at("10.0.0.2")] }]);
    expect(plain(record.localities[0])).toMatchObject({
      weight: 3,
      endpoints: [{ weight: 2 }, { weight: 1 }],
    });
    expect(record.notes).toEqual([]);
  });

  test("a locality's weight that is no sum (distribute) stays", () => {
    const record = flatten([{ weight: 80, endpoints: [at("10.0.0.1"), at("10.0.0.1")] }]);
    expect(record.localities[0]?.weight).toBe(80);
  });

  test("of contradicting ones the first priority, locality, a healthy one, the heaviest wins, and it is said", () => {
    const record = flatten([
      { region: "b", endpoints: [at("10.0.0.1", { weight: 9 })] },
      {
        region: "a",
        priority: 1,
        endpoints: [at("10.0.0.1"), at("10.0.0.2", { health: 2 }), at("10.0.0.2")],
      },
    ]);
    expect(plain(record.localities)).toEqual([
      {
        region: "b",
        zone: "",
        subzone: "",
        priority: 0,
        weight: 0,
        endpoints: [{ address: "10.0.0.1", port: 80, weight: 9, healthy: true }],
      },
      {
        region: "a",
        zone: "",
        subzone: "",
        priority: 1,
        weight: 0,
        endpoints: [{ address: "10.0.0.2", port: 80, weight: 1, healthy: true }],
      },
    ]);
    expect(record.notes.map(({ kind }) => kind)).toEqual(["conflict", "conflict"]);
  });

  test("a locality given twice is one", () => {
    const record = flatten([
      { region: "a", weight: 1, endpoints: [at("10.0.0.2")] },
      { region: "a", weight: 5, endpoints: [at("10.0.0.1")] },
    ]);
    expect(record.localities.length).toBe(1);
    expect(plain(record.localities[0])).toMatchObject({
      weight: 5,
      endpoints: [{ address: "10.0.0.1" }, { address: "10.0.0.2" }],
    });
  });

  test("localities without endpoints are left out (distribute keeps excluded ones)", () => {
    expect(
      flatten([{ region: "a", weight: 20, endpoints: [] }, { endpoints: [at("10.0.0.1")] }]).localities
        .length,
    ).toBe(1);
    expect(flatten([]).localities).toEqual([]);
  });

  test("pipes and listeners inside Envoy are left out and said", () => {
    const internal = {
      endpoint: { address: { envoyInternalAddress: { serverListenerName: "connect_originate" } } },
    };
    const pipe = { endpoint: { address: { pipe: { path: "/x.sock" } } } };
    const record = flattenEndpoints(NAME, encode({ endpoints: [{ lbEndpoints: [internal, pipe] }] }), false);
    expect(plain(record.localities)).toEqual([]);
    expect(record.notes.length).toBe(1);
  });

  test("an endpoint's workload is found by its address, also when it is reached by HBONE", () => {
    const internal = (endpointId: string) => ({
      endpoint: {
        address: { envoyInternalAddress: { serverListenerName: "connect_originate", endpointId } },
      },
      metadata: { filterMetadata: { istio: { fields: { workload: { stringValue: "web;shop;web;;K" } } } } },
    });
    const lbEndpoints = [internal("10.0.0.1:8080"), internal("[fd00::1]:8081")];
    const workloads = new WorkloadIndex();
    flattenEndpoints(NAME, encode({ endpoints: [{ lbEndpoints }] }), false, workloads, true);
    for (const address of ["10.0.0.1", "fd00::1"])
      expect(workloads.findHost(address)).toBe("web;shop;web;;K");
    expect(workloads.find("10.0.0.1", 8080)).toBe("web;shop;web;;K");
    expect(workloads.portsOf(["10.0.0.1"])).toEqual([8080]);
  });

  test("loopback endpoints are endpoints", () => {
    expect(flatten([{ endpoints: [at("127.0.0.1")] }]).localities[0]?.endpoints.length).toBe(1);
  });

  test("an endpoint at one of the tunnel's own addresses is left out, with a note", () => {
    const read = flatten([
      {
        endpoints: [
          { ...at("127.0.0.7"), port: 15001 },
          { ...at("10.0.0.1"), port: 15001 },
        ],
      },
    ]);
    expect(plain(read)).toMatchObject({ localities: [{ endpoints: [{ address: "10.0.0.1" }] }] });
    expect(read.notes.map(({ kind }) => kind)).toEqual(["refused"]);
  });

  test("2b.3 a gateway is known by its empty workload and tlsMode, on whatever port", () => {
    const gateway = { ...at("172.30.0.1"), port: 32001, tls: true, workload: ";;;;", weight: 4 };
    const pod = at("10.0.0.1", { workload: ";;;;Kubernetes", tls: true });
    expect(flatten([{ endpoints: [gateway] }]).onlyGateways).toBe(true);
    expect(plain(flatten([{ endpoints: [gateway, pod] }]))).toMatchObject({
      onlyGateways: false,
      prefersTls: true,
      localities: [{ endpoints: [{ address: "10.0.0.1" }] }],
    });
    expect(flatten([{ endpoints: [{ ...gateway, tls: false }] }]).onlyGateways).toBe(false);
    expect(flatten([{ endpoints: [gateway, pod] }], true).localities[0]?.endpoints.length).toBe(2);
  });

  test("policy: overprovisioning is taken, drop_overloads noted", () => {
    const policy = { overprovisioningFactor: { value: 200 }, dropOverloads: [{ category: "x" }] };
    const record = flattenEndpoints(NAME, encode({ policy }), false);
    expect(record.overprovisioning).toBe(200);
    expect(record.notes.map(({ text }) => text)).toEqual(["drop_overloads"]);
  });

  test("what was read says the same as the generated decoder", () => {
    const random = new Random(3);
    for (let i = 0; i < 200; i++) {
      const given: GivenLocality[] = Array.from({ length: random.below(4) }, () => ({
        region: random.pick(["", "r1", "r2"]),
        zone: random.pick(["", "z"]),
        priority: random.below(3),
        ...(random.chance(0.5) ? { weight: random.below(1000) } : {}),
        endpoints: Array.from({ length: random.below(5) }, () => ({
          address: random.pick(["10.0.0.1", "10.255.255.255", "fd00::1", "2001:db8::ffff"]),
          port: 1 + random.below(65535),
          ...(random.chance(0.5) ? { weight: 1 + random.below(500) } : {}),
          health: random.below(6),
          tls: random.chance(0.5),
        })),
      }));
      const bytes = envoy.ClusterLoadAssignment.encode(loadAssignment(NAME, given)).finish();
      const read = readAssignment(NAME, bytes);
      const tree = envoy.ClusterLoadAssignment.decode(bytes);
      expect(read.name).toBe(tree.clusterName);
      expect(
        read.localities.map((one) => [one.region, one.zone, one.priority, one.weight, one.to - one.from]),
      ).toEqual(
        tree.endpoints.map((one) => [
          one.locality?.region ?? "",
          one.locality?.zone ?? "",
          one.priority ?? 0,
          one.loadBalancingWeight?.value ?? 0,
          one.lbEndpoints?.length ?? 0,
        ]),
      );
      expect(
        read.buffer
          .pick(
            read.localities.flatMap(({ from, to }) => Array.from({ length: to - from }, (_, i) => from + i)),
          )
          .map(({ address, port, weight }) => [address, port, weight]),
      ).toEqual(
        tree.endpoints.flatMap((one) =>
          (one.lbEndpoints ?? []).map((endpoint) => [
            endpoint.endpoint?.address?.socketAddress?.address ?? "",
            endpoint.endpoint?.address?.socketAddress?.portValue ?? 0,
            endpoint.loadBalancingWeight?.value ?? 1,
          ]),
        ),
      );
      expect(read.prefersTls).toBe(given.some((one) => one.endpoints.some(({ tls }) => tls)));
    }
  });
});

describe("malformed", () => {
  const reasonOf = (bytes: Uint8Array, name = NAME) => {
    try {
      flattenEndpoints(name, bytes, false);
    } catch (error) {
      if (error instanceof MalformedResource) return `${error.resource}: ${error.reason}`;
      throw error;
    }
    return undefined;
  };

  test.each([
    ["port 0", [{ endpoints: [at("10.0.0.1", { port: 0 })] }], "endpoint 10.0.0.1 has the port 0"],
    [
      "port 65536",
      [{ endpoints: [at("10.0.0.1", { port: 65536 })] }],
      "endpoint 10.0.0.1 has the port 65536",
    ],
    [
      "a host name",
      [{ endpoints: [at("a.example")] }],
      'an endpoint has the address "a.example", which is not an IP address',
    ],
    ["no address", [{ endpoints: [at("")] }], 'an endpoint has the address "", which is not an IP address'],
    [
      "an unknown health",
      [{ endpoints: [at("10.0.0.1", { health: 6 })] }],
      "health_status has the unknown value 6",
    ],
  ])("%s", (_, localities, reason) => {
    expect(reasonOf(endpoints(NAME, localities))).toBe(`${NAME}: ${reason}`);
  });

  test("another name inside, none at all, and one of 1 MB", () => {
    expect(reasonOf(endpoints("b", []))).toBe(`${NAME}: the message inside is called b`);
    expect(reasonOf(new Uint8Array(0))).toBe(`${NAME}: the message inside has no name`);
    expect(reasonOf(endpoints("", []), "")).toBe(": it has no name");
    const long = "x".repeat(1 << 20);
    const reason = reasonOf(endpoints(long, []), long);
    expect(reason).toEndWith("its name has 1048576 characters, more than 4096");
    expect(reason?.length).toBeLessThan(400);
  });

  test("truncated anywhere: either malformed, or an earlier end that is a whole message", () => {
    const bytes = endpoints(NAME, [{ region: "r", weight: 2, endpoints: [at("10.0.0.1"), at("fd00::1")] }]);
    let malformed = 0;
    for (let length = 0; length < bytes.length; length++) {
      if (reasonOf(bytes.slice(0, length)) !== undefined) malformed++;
    }
    // Only the cut between the name and the rest leaves a whole message.
    expect(malformed).toBe(bytes.length - 1);
  });
});
