/** The single file in dual-engine mode with the embedded control plane, and the change of mode on a running machine. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Proof } from "../../src/handover/predecessor.ts";
import { eventually } from "../lab/process.ts";
import { AgentLab, missing, SERVICE, shop } from "./agent-lab.ts";

const why = missing();
if (why) console.warn(`skipped: dual-engine mode: ${why}`);

setDefaultTimeout(90_000);

describe.skipIf(why !== undefined)("dual-engine mode", () => {
  let lab: AgentLab;
  const configure = (mode: string) => writeFileSync(join(lab.folder, "kmesh.yaml"), `mode: ${mode}\n`);

  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 80, v2: 20 }));
    configure("dual-engine");
    await lab.liveAgent(`--config=${lab.folder}/kmesh.yaml`);
  }, 60_000);
  afterAll(async () => {
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  test("weights are exact, the app sees the address that it asked for, the status has the workloads", async () => {
    const { by, peers, errors } = await lab.connect(100);
    expect({ by, errors }).toEqual({ by: { a: 40, b: 40, c: 20 }, errors: {} });
    expect(peers).toEqual({ [`${SERVICE} 80`]: 100 });
    const status = await lab.toldStatus();
    expect(status.mode).toBe("dual-engine");
    expect(status.workloads).toMatchObject({ services: 1, workloads: 3, policies: 0, ambientLacking: false });
    expect(status.stream?.types.address).toMatchObject({ resources: 4, rejected: 0, answered: { nacks: 0 } });
    expect(status.stream?.types.cluster.responses).toBe(0);
    const text = (await lab.kmesh("status")).stdout;
    expect(text).toMatch(/^ *workloads +3 workloads of 1 service, 0 policies$/m);
    expect(text).toMatch(/^ADDRESS +SYNCED +4 /m);
  });

  test("one workload changes: at most three writes", async () => {
    const before = (await lab.toldStatus()).tables?.applies ?? 0;
    const mesh = shop({ v1: 80, v2: 20 });
    const [service] = mesh.services;
    if (!service) throw new Error("no service");
    const endpoints = service.endpoints.map((each, i) => (i === 0 ? { ...each, healthy: false } : each));
    lab.configure({ services: [{ ...service, endpoints }] });
    const { tables } = await eventually("the change is live", async () => {
      const status = await lab.toldStatus();
      return (status.tables?.applies ?? 0) > before && status;
    });
    expect(tables?.lastWrites).toBeLessThanOrEqual(3);
    expect((await lab.connect(60)).by).toEqual({ b: 40, c: 20 });
    lab.configure(mesh);
    await eventually("a is back", async () => (await lab.connect(10)).by.a === 4);
  });

  for (const mode of ["kernel-native", "dual-engine"])
    test(`the mode becomes ${mode} under load, and no connection notices`, async () => {
      const storm = await lab.client("storm", { threads: 2 });
      const hold = await lab.client("hold", { count: 5 });
      configure(mode);
      const proof = await lab.json<Proof>("restart", "--graceful");
      expect(proof).toMatchObject({ failed: 0, refused: 0, synced: true });
      expect((await lab.toldStatus()).mode).toBe(mode);
      const [made, held] = await Promise.all([storm.end(), hold.end()]);
      expect(made.errors).toEqual({});
      expect(held).toMatchObject({ cut: 0, errors: {} });
      expect((await lab.connect(100)).by).toEqual({ a: 40, b: 40, c: 20 });
    });

  test("killed, the kernel goes on; started again, nothing is written", async () => {
    const pid = await lab.agentPid();
    process.kill(pid, "SIGKILL");
    await eventually("it is gone", async () => !(await lab.toldStatus()).alive);
    expect((await lab.connect(50)).by).toEqual({ a: 20, b: 20, c: 10 });
    await lab.liveAgent(`--config=${lab.folder}/kmesh.yaml`);
    expect(await lab.toldStatus()).toMatchObject({ adopted: true, tables: { firstWrites: 0 } });
  });
});
