/**
 * Flips services as fast as it can under connects on every core, and counts what connections met:
 * `bun flip.ts [SECONDS]` prints a JSON line and exits with 1 when a connection missed or met another's endpoint.
 *
 * Each service has endpoints of its own, so that an answer from any other server is a mixture; service addresses are
 * routed nowhere, so that a miss is an error.
 */

import { availableParallelism } from "node:os";
import { emptyMesh, type Mesh } from "../../src/mesh/model.ts";
import { DatapathLab } from "../datapath/lab.ts";
import { addCluster, addFrontend, endpoint } from "../datapath/mesh.ts";
import type { RunningClient, Tally } from "../interop/mesh-lab.ts";

/** Which servers may answer at which address. */
const SERVICES: Record<string, string[]> = {
  "10.96.0.1:80": ["a1", "a2", "a3"],
  "10.96.0.2:80": ["b1", "b2"],
  "10.96.0.3:80": ["c1", "c2"],
  "10.98.3.4:80": ["d1", "d2"],
  "[fd00:96::1]:80": ["e1", "e2"],
};

const ADDRESSES: Record<string, string> = {
  ...Object.fromEntries(
    ["a1", "a2", "a3", "b1", "b2", "c1", "c2", "d1", "d2"].map((name, i) => [name, `172.31.2.${i + 1}:80`]),
  ),
  e1: "[fd00:31::1]:80",
  e2: "[fd00:31::2]:80",
};

const at = (...names: string[]) => names.map((name) => endpoint(ADDRESSES[name] ?? ""));

export interface FlipReport {
  flips: number;
  connections: number;
  /** Connections that failed. */
  misses: number;
  /** Connections that another service's server answered. */
  mixtures: number;
  errors: Record<string, number>;
}

/** The mesh of one step. Neighbouring steps differ in every service, and in what lies beside them in the tables. */
function meshAt(step: number): Mesh {
  const mesh = emptyMesh();
  const pick = <T>(choices: T[]) => choices[step % choices.length] as T;
  addCluster(mesh, "a", at(...pick([["a1", "a2"], ["a2", "a3"], ["a3"], ["a1", "a2", "a3"]])));
  addFrontend(mesh, "10.96.0.1:80", { kind: "cluster", cluster: "a" }, "a:80");
  const own = pick(["b-x", "b-y", "b-z"]);
  addCluster(mesh, own, at(pick(["b1", "b2"])));
  addFrontend(mesh, "10.96.0.2:80", { kind: "cluster", cluster: own }, "b:80");
  addCluster(mesh, "c-1", at("c1"));
  addCluster(mesh, "c-2", at("c2"));
  const weight = pick([80, 50, 20]);
  mesh.splits.set("c", {
    name: "c",
    shares: [
      { cluster: "c-1", weight },
      { cluster: "c-2", weight: 100 - weight },
    ],
  });
  const target = pick([
    { kind: "split", split: "c" },
    { kind: "cluster", cluster: "c-1" },
  ] as const);
  addFrontend(mesh, "10.96.0.3:80", target, "c:80");
  addCluster(mesh, "d", at(pick(["d1", "d2"])));
  addFrontend(
    mesh,
    { kind: "prefix", address: "10.98.0.0", length: 16, port: 80 },
    { kind: "cluster", cluster: "d" },
    "d:80",
  );
  if (step % 8 === 0) {
    addFrontend(
      mesh,
      { kind: "prefix", address: "10.98.99.0", length: 24, port: 80 },
      { kind: "cluster", cluster: "a" },
      "a:80",
    );
  }
  addCluster(mesh, "e", at(pick(["e1", "e2"])), { balance: { policy: "least-request" } });
  addFrontend(mesh, "[fd00:96::1]:80", { kind: "cluster", cluster: "e" }, "e:80");
  addNeighbours(mesh, step);
  return mesh;
}

/** Frontends and clusters that come and go, so that memory and ids are used again; now and then the hash must grow. */
function addNeighbours(mesh: Mesh, step: number): void {
  const count = step % 64 === 63 ? 1500 : 40;
  for (let i = 0; i < count; i++) {
    const n = (step * 17 + i) % 60_000;
    const name = `neighbour-${n % 97}`;
    if (!mesh.clusters.has(name)) addCluster(mesh, name, at("a1", "b1", "c1"));
    addFrontend(mesh, `10.120.${n >> 8}.${n & 255}:80`, { kind: "cluster", cluster: name }, `n${n % 50}:80`);
  }
}

export async function flip(seconds: number): Promise<FlipReport> {
  const lab = await DatapathLab.create();
  const clients: { at: string; client: RunningClient }[] = [];
  try {
    await lab.serve(ADDRESSES);
    lab.publish(meshAt(0));
    const perService = Math.max(1, Math.ceil(availableParallelism() / 2));
    for (const service of Object.keys(SERVICES)) {
      for (let i = 0; i < perService; i++) clients.push({ at: service, client: await lab.storm(service) });
    }
    const flips = await flipFor(lab, seconds * 1000);
    const report: FlipReport = { flips, connections: 0, misses: 0, mixtures: 0, errors: {} };
    for (const { at: service, client } of clients.splice(0)) add(report, service, await client.end());
    return report;
  } finally {
    for (const { client } of clients) client.kill();
    await lab.remove();
  }
}

async function flipFor(lab: DatapathLab, milliseconds: number): Promise<number> {
  const end = performance.now() + milliseconds;
  let flips = 0;
  while (performance.now() < end) {
    lab.publish(meshAt(++flips));
    // DeferredFree periods end on a timer: what was freed must come into use again while connections go on.
    await new Promise((resolve) => setTimeout(resolve, flips % 20 === 0 ? 1 : 0));
  }
  return flips;
}

function add(report: FlipReport, service: string, tally: Tally): void {
  for (const [server, count] of Object.entries(tally.by)) {
    report.connections += count;
    if (!SERVICES[service]?.includes(server)) report.mixtures += count;
  }
  for (const [error, count] of Object.entries(tally.errors)) {
    report.misses += count;
    report.errors[`${service} ${error}`] = (report.errors[`${service} ${error}`] ?? 0) + count;
  }
}

if (import.meta.main) {
  const report = await flip(Number(process.argv[2] ?? 10));
  console.log(JSON.stringify(report));
  process.exit(report.misses + report.mixtures === 0 && report.connections > 0 ? 0 : 1);
}
