/** An agent in a pid or time namespace of its own is exempt like any other. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { openPinned } from "../../src/datapath/inspect/inspect.ts";
import { taskIdentity } from "../../src/kernel/process.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { output } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";

setDefaultTimeout(90_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("tests of agents in namespaces are skipped: they need root");

const SERVER = "172.31.1.1";
const SCRIPT = join(import.meta.dirname, "exempt-self.ts");

describe.skipIf(!root)("a process that exempts itself", () => {
  let lab: DatapathLab;
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({ open: `${SERVER}:8080` });
    const mesh = emptyMesh();
    // Whoever is governed reaches nothing.
    mesh.fallback = { kind: "refuse", reason: "not-in-registry" };
    lab.publish(mesh);
  });
  afterAll(async () => {
    await lab?.remove();
  });

  const run = async (unshare: string[], mode = "") =>
    (
      await output([...unshare, process.execPath, SCRIPT, lab.bpffs, SERVER, "8080", mode], {
        netns: lab.namespace.path,
        cgroup: lab.cgroup,
      })
    ).trim();

  const PID = ["unshare", "--pid", "--fork", "--mount-proc"];
  const TIME = ["unshare", "--time", "--fork", "--boottime", "100000"];
  test.each([
    ["in the initial namespaces", [], ""],
    ["in a pid namespace", PID, ""],
    ["in a pid namespace with the machine's /proc", ["unshare", "--pid", "--fork"], ""],
    ["in a time namespace", TIME, ""],
    ["in both, with the child that proves programs", [...TIME, ...PID], "prove"],
    ["in the initial namespaces, with that child", [], "prove"],
  ])("%s", async (_, unshare, mode) => {
    // As Bun calls it; the kernel said EPERM.
    expect(await run(unshare, "not-exempt")).toBe("ECONNREFUSED");
    expect(await run(unshare, mode)).toBe("arrived");
  });

  test("dead entries never keep an agent out, and a live one stays", async () => {
    const tables = openPinned(lab.bpffs);
    const { agents } = tables.maps;
    try {
      const own = taskIdentity();
      const put = (pid: number, start: bigint) =>
        agents.update(
          new Uint8Array(Uint32Array.of(pid).buffer),
          new Uint8Array(BigUint64Array.of(start).buffer),
        );
      if (own) put(own.tgid, own.startTicks);
      for (let i = 0; agents.entries().count < agents.info.maxEntries; i++) put(5_000_000 + i, 1n);
      expect(await run(PID)).toBe("arrived");
      expect(agents.entries().count).toBe(agents.info.maxEntries);
      expect(await run([])).toBe("arrived");
      const pids = new Uint32Array(agents.entries().keys.slice().buffer);
      expect([...pids].filter((pid) => pid >= 5_000_000)).toEqual([]);
      expect([...pids]).toContain(process.pid);
    } finally {
      tables.close();
    }
  });
});
