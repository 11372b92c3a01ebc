/**
 * Ejection has its rules twice: bpf/include/eject.h for the kernel's own connects, src/datapath/tunnel-outcomes.ts for
 * connects behind the tunnel. The same outcomes must leave the same state.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { generationFolder, keptPin, tablePin } from "../../src/datapath/generation/pins.ts";
import { readDescriptor, readSlots } from "../../src/datapath/mesh-tables/descriptor.ts";
import { readEndpoint } from "../../src/datapath/mesh-tables/endpoint-table.ts";
import { readPeer } from "../../src/datapath/mesh-tables/tunnel-targets.ts";
import { ChunkedTable } from "../../src/datapath/tables/chunked-table.ts";
import * as layout from "../../src/datapath/tables/layout.gen.ts";
import type { Tables } from "../../src/datapath/tables/tables.ts";
import { recordFailure, recordSuccess } from "../../src/datapath/tunnel-outcomes.ts";
import { monotonic } from "../../src/kernel/clock.ts";
import { BpfMap } from "../../src/kernel/maps.ts";
import { BpfObject, type BpfProgram } from "../../src/kernel/object.ts";
import { type Ejection, emptyMesh } from "../../src/mesh/model.ts";
import type { Transport } from "../../src/mesh/transport.ts";
import { Random } from "../lab/random.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint, locality } from "./mesh.ts";

setDefaultTimeout(60_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("the comparison of ejection rules is skipped: it needs root");

const ISTIO: Transport = { kind: "istio", sni: "web", sans: [] };
/** Arguments of test/bpf/ejection.bpf.c. */
const WELL = 0x80000000;
const BEGUN_LONG_AGO = 0x40000000;

/** `failed` and `well` begin and end now. `late` is a failure that began before everything else. */
type Outcome = "failed" | "well" | "late" | "late-well";
/** The number of an endpoint and what happened there; "over": the ejections are over. */
type Step = readonly [number, Outcome] | "over";

const RULE: Ejection = { after: 3, base: 100_000, longest: 300_000, percent: 50, enforcing: 100 };
const SHORT: Ejection = { ...RULE, after: 1, base: 30 };
const fails = (at: number, count: number): Step[] =>
  Array.from({ length: count }, () => [at, "failed"] as const);

interface Case {
  name: string;
  rule: Ejection;
  /** Endpoints of each priority. */
  priorities: number[];
  steps: Step[];
  /** The ejected endpoints at the end. */
  ejected: number[];
}

const CASES: Case[] = [
  { name: "three in a row", rule: RULE, priorities: [2], steps: fails(0, 3), ejected: [0] },
  {
    name: "a success ends the row",
    rule: RULE,
    priorities: [2],
    steps: [...fails(0, 2), [0, "well"], ...fails(0, 2)],
    ejected: [],
  },
  {
    name: "more failures of an ejected one change nothing",
    rule: RULE,
    priorities: [2],
    steps: [...fails(0, 5), [0, "well"]],
    ejected: [0],
  },
  {
    name: "half of four at most",
    rule: RULE,
    priorities: [4],
    steps: [0, 1, 2, 3].flatMap((at) => fails(at, 3)),
    ejected: [0, 1],
  },
  {
    name: "one always may",
    rule: { ...RULE, percent: 1 },
    priorities: [2],
    steps: [0, 1].flatMap((at) => fails(at, 3)),
    ejected: [0],
  },
  { name: "percent 0", rule: { ...RULE, percent: 0 }, priorities: [2], steps: fails(0, 7), ejected: [] },
  {
    name: "the share counts further priorities",
    rule: RULE,
    priorities: [1, 3],
    steps: [0, 1, 2].flatMap((at) => fails(at, 3)),
    ejected: [0, 1],
  },
  { name: "never", rule: { ...RULE, after: 0 }, priorities: [2], steps: fails(0, 7), ejected: [] },
  { name: "not enforced", rule: { ...RULE, enforcing: 0 }, priorities: [2], steps: fails(0, 7), ejected: [] },
  {
    name: "the second in a row",
    rule: SHORT,
    priorities: [2],
    steps: [[0, "failed"], "over", [0, "failed"], "over", [0, "late"], [0, "late-well"]],
    ejected: [],
  },
  {
    name: "a success after an ejection",
    rule: { ...SHORT, longest: 40 },
    priorities: [2],
    steps: [[0, "failed"], "over", [0, "well"], [0, "failed"], "over"],
    ejected: [],
  },
  {
    name: "no longer than the longest",
    rule: { ...RULE, after: 1, longest: 50_000 },
    priorities: [2],
    steps: [[0, "failed"]],
    ejected: [0],
  },
];

/** Any outcomes at any of four endpoints, with a seed. */
function randomCase(seed: number): Omit<Case, "ejected"> {
  const random = new Random(seed);
  const rule = { ...RULE, after: 1 + random.below(3), percent: random.pick([10, 50, 75, 100]) };
  const steps = Array.from(
    { length: 60 },
    (): Step => [random.below(4), random.pick(["failed", "failed", "failed", "well", "late", "late-well"])],
  );
  return {
    name: `outcomes by the seed ${seed}`,
    rule,
    priorities: random.pick([[4], [1, 3], [2, 2]]),
    steps,
  };
}

let serial = 0;

describe.skipIf(!root)("ejection in the kernel and in the tunnel", () => {
  let lab: DatapathLab;
  let tables: Tables;
  let program: BpfProgram;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    lab.publish(emptyMesh());
    ({ tables } = lab.datapath);
    const file = join(import.meta.dirname, "../../dist/test/ejection.bpf.o");
    using object = BpfObject.open(readFileSync(file), "ejection");
    for (const name of object.mapNames) {
      const own = tablePin(generationFolder(lab.bpffs), name);
      using map = BpfMap.fromPin(existsSync(own) ? own : keptPin(lab.bpffs, name));
      object.useMap(name, map);
    }
    object.load();
    program = object.program("record");
  });
  afterAll(async () => {
    program?.close();
    await lab?.remove();
  });

  /** A cluster of the same shape twice, plain and tunnelled: ids of the endpoints in their order, and of the cluster. */
  function publish({ rule, priorities }: Pick<Case, "rule" | "priorities">) {
    serial++;
    const mesh = emptyMesh();
    const ports = { plain: 10_000 + 10 * serial, tunnelled: 20_000 + 10 * serial };
    for (const [kind, first] of Object.entries(ports)) {
      let port = first;
      const localities = priorities.map((count, priority) =>
        locality(
          Array.from({ length: count }, () =>
            endpoint(`172.31.1.1:${port++}`, kind === "plain" ? {} : { transport: 1 }),
          ),
          { priority },
        ),
      );
      addCluster(mesh, kind, [], {
        localities,
        ejection: rule,
        transports: kind === "plain" ? [] : [ISTIO],
      });
      addFrontend(mesh, `10.96.8.${kind === "plain" ? 1 : 2}:80`, { kind: "cluster", cluster: kind }, kind);
    }
    lab.publish(mesh);
    lab.datapath.keepCurrent();
    const count = priorities.reduce((sum, each) => sum + each, 0);
    return { plain: idsFrom(ports.plain, count), tunnelled: idsFrom(ports.tunnelled, count) };
  }

  function idsFrom(firstPort: number, count: number): { cluster: number; endpoints: number[] } {
    for (let cluster = 0; cluster < tables.clusters.capacity; cluster++) {
      const endpoints = Array.from({ length: count }, () => -1);
      let descriptor = tables.clusters.has(cluster) ? Number(tables.clusters.long(cluster)) : 0;
      while (descriptor !== 0 && tables.descriptors.has(descriptor)) {
        const { v4, fallback } = readDescriptor(tables.descriptors, descriptor);
        for (const slot of readSlots(tables.slots, v4)) {
          if (!tables.endpoints.has(slot)) continue;
          const at = readEndpoint(tables, slot).port - firstPort;
          if (at in endpoints) endpoints[at] = slot;
        }
        descriptor = fallback;
      }
      if (!endpoints.includes(-1)) return { cluster, endpoints };
    }
    throw new Error(`no cluster has the endpoints from port ${firstPort} on`);
  }

  const LOAD = layout.endpoint_load.fields;
  const CLUSTER = layout.cluster_load.fields;

  const isEjected = (id: number) => tables.endpointLoads.long(id, LOAD.ejected_until_ns.offset) > monotonic();

  /** All that the rules have written. What is left of ejections in units of 10 s; short ones may end between two looks. */
  function state({ cluster, endpoints }: { cluster: number; endpoints: number[] }, { base }: Ejection) {
    const left = (until: bigint) =>
      base < 10_000 ? undefined : Math.max(0, Math.ceil(Number(until - monotonic()) / 1e10));
    const { clusterLoads: clusters } = tables;
    return {
      endpoints: endpoints.map((id) => ({
        failures: tables.endpointLoads.word(id, LOAD.failures.offset),
        ejections: tables.endpointLoads.word(id, LOAD.ejections.offset),
        left: left(tables.endpointLoads.long(id, LOAD.ejected_until_ns.offset)),
      })),
      cluster: {
        ejected: clusters.word(cluster, CLUSTER.ejected.offset),
        ejections: clusters.count(cluster, CLUSTER.ejections.offset),
        left: left(clusters.long(cluster, CLUSTER.ejected_until_ns.offset)),
      },
    };
  }

  function record(ids: ReturnType<typeof publish>, at: number, outcome: Outcome): void {
    const isLate = outcome.startsWith("late");
    const isWell = outcome.endsWith("well");
    const [plain = 0, tunnelled = 0] = [ids.plain.endpoints[at], ids.tunnelled.endpoints[at]];
    const flags = (isWell ? WELL : 0) + (isLate ? BEGUN_LONG_AGO : 0);
    program.ask(ids.plain.cluster, plain + flags);
    const now = monotonic();
    const since = isLate ? 1n : now;
    if (isWell) recordSuccess(tables, tunnelled, since);
    else recordFailure(tables, tunnelled, since, now);
  }

  async function run(given: Omit<Case, "ejected">) {
    const ids = publish(given);
    for (const [number, step] of given.steps.entries()) {
      if (step === "over")
        while ([...ids.plain.endpoints, ...ids.tunnelled.endpoints].some(isEjected)) await Bun.sleep(5);
      else record(ids, ...step);
      const [tunnelled, plain] = [state(ids.tunnelled, given.rule), state(ids.plain, given.rule)];
      expect({ number, step, ...tunnelled }).toEqual({ number, step, ...plain });
    }
    return ids;
  }

  test.each(CASES.map((given) => [given.name, given] as const))("%s", async (_name, given) => {
    const { plain, tunnelled } = await run(given);
    for (const { endpoints } of [plain, tunnelled])
      expect(endpoints.flatMap((id, at) => (isEjected(id) ? at : []))).toEqual(given.ejected);
  });

  test("a failure counts for its service and its endpoint, also where the cluster is newer than what is mapped", () => {
    const [id = 0] = publish({ rule: RULE, priorities: [1] }).tunnelled.endpoints;
    const service = readPeer(tables, id)?.service ?? 0;
    const failed = () => [
      tables.serviceCounts.count(service, layout.service_counters.fields.failed.offset),
      tables.endpointLoads.count(id, LOAD.failed.offset),
    ];
    const before = failed();
    const clusterLoads = new ChunkedTable(tables.maps.cluster_loads, "", layout.cluster_load.size);
    clusterLoads.unmap();
    recordFailure({ ...tables, clusterLoads }, id, monotonic(), monotonic());
    expect(failed()).toEqual(before.map((count) => count + 1));
    recordFailure(tables, id, monotonic(), monotonic());
    expect(failed()).toEqual(before.map((count) => count + 2));
  });

  test("any outcomes", async () => {
    for (let seed = 1; seed <= 30; seed++) await run(randomCase(seed));
  });
});
