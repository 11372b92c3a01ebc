import { describe, expect, test } from "bun:test";
import { cluster, endpoint, locality } from "../../../test/datapath/mesh.ts";
import type { Cluster } from "../../mesh/model.ts";
import { weighEndpoints, weighFallbacks } from "./weights.ts";

/** Endpoint port -> share of all connections, in percent. */
function shares(of: Cluster): Record<number, number> {
  const { lists, places, weights } = weighEndpoints(of, "v4");
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const percent = weights.map((weight) => Math.round((weight * 1000) / total) / 10);
  return Object.fromEntries(percent.map((share, i) => [lists[i]?.port(places[i] ?? 0), share]));
}

const up = (port: number, weight = 1) => endpoint(`10.0.0.1:${port}`, { weight });
const down = (port: number) => endpoint(`10.0.0.1:${port}`, { healthy: false });
const levels = (...priorities: ReturnType<typeof up>[][]) => ({
  localities: priorities.map((endpoints, priority) => locality(endpoints, { priority })),
});

describe("weights", () => {
  test("endpoint weights are taken as they are, unhealthy ones left out", () => {
    expect(shares(cluster("c", [up(1, 3), up(2), down(3)], { panicThreshold: 0 }))).toEqual({ 1: 75, 2: 25 });
  });

  test("overprovisioning keeps a priority that is 72 % healthy at full load (Envoy's example)", () => {
    const first = [
      ...Array.from({ length: 72 }, (_, i) => up(i + 1)),
      ...Array.from({ length: 28 }, (_, i) => down(i + 101)),
    ];
    const all = shares(cluster("c", [], levels(first, [up(999)])));
    expect(all[999]).toBeUndefined();
    const half = [
      ...Array.from({ length: 50 }, (_, i) => up(i + 1)),
      ...Array.from({ length: 50 }, (_, i) => down(i + 101)),
    ];
    expect(shares(cluster("c", [], levels(half, [up(999)])))[999]).toBe(30);
  });

  test("the first priority without anybody healthy yields to the next", () => {
    expect(shares(cluster("c", [], levels([down(1)], [up(2)])))).toEqual({ 2: 100 });
  });

  test("panic: below the threshold all are used, with threshold 0 nobody", () => {
    expect(shares(cluster("c", [down(1), down(2)]))).toEqual({ 1: 50, 2: 50 });
    expect(shares(cluster("c", [down(1), down(2)], { panicThreshold: 0 }))).toEqual({});
    expect(shares(cluster("c", [up(1), down(2), down(3)], { panicThreshold: 50 }))).toEqual({
      1: 33.3,
      2: 33.3,
      3: 33.3,
    });
    expect(shares(cluster("c", [up(1), down(2), down(3)], { panicThreshold: 20 }))).toEqual({ 1: 100 });
  });

  test("locality weights count only where the cluster says so, and shrink with health", () => {
    const localities = [
      locality([up(1), up(2)], { zone: "a", weight: 1 }),
      locality([up(3)], { zone: "b", weight: 3 }),
    ];
    expect(shares(cluster("c", [], { localities }))).toEqual({ 1: 33.3, 2: 33.3, 3: 33.3 });
    expect(shares(cluster("c", [], { localities, localityWeighted: true }))).toEqual({
      1: 12.5,
      2: 12.5,
      3: 75,
    });
    const sick = [
      locality([up(1), down(2)], { zone: "a", weight: 1 }),
      locality([up(3)], { zone: "b", weight: 1 }),
    ];
    expect(shares(cluster("c", [], { localities: sick, localityWeighted: true }))).toEqual({
      1: 41.2,
      3: 58.8,
    });
  });

  test("a locality without weight gets nothing when weights count", () => {
    const localities = [locality([up(1)], { weight: 0 }), locality([up(2)], { zone: "b", weight: 5 })];
    expect(shares(cluster("c", [], { localities, localityWeighted: true }))).toEqual({ 2: 100 });
  });

  test("only endpoints of the family count, also for health", () => {
    const { places } = weighEndpoints(cluster("c", [endpoint("10.0.0.1:1"), endpoint("[fd00::1]:2")]), "v6");
    expect(places).toEqual([1]);
  });
});

describe("fallbacks", () => {
  const ports = (of: Cluster, most = 8) =>
    weighFallbacks(of, "v4", most).map(({ lists, places }) =>
      places.map((place, i) => lists[i]?.port(place)),
    );

  test("are the priorities without load that have a healthy endpoint, in their order", () => {
    const all = levels([up(1)], [down(2)], [up(3), down(4)], [up(5)]);
    expect(ports(cluster("c", [], all))).toEqual([[3], [5]]);
    // A priority that shares the load is none.
    expect(ports(cluster("c", [], levels([up(1), down(2)], [up(3)], [up(5)])))).toEqual([[5]]);
    expect(ports(cluster("c", [up(1), up(2)]))).toEqual([]);
    expect(ports(cluster("c", [], levels([up(1)], [down(2)])))).toEqual([]);
  });

  test("that are more than a chain has room for share its last place", () => {
    const all = levels([up(1)], [up(2)], [up(3)], [up(4)], [up(5)]);
    expect(ports(cluster("c", [], all), 2)).toEqual([[2], [3, 4, 5]]);
  });
});
