/** Connections that began before they were governed are found, and no others. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { basename, join } from "node:path";
import type { PreexistingConnections } from "../../src/datapath/inspect/preexisting-connections.ts";
import { emptyMesh } from "../../src/mesh/model.ts";
import { RunningClient } from "../interop/mesh-lab.ts";
import { output, placed } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(90_000);
const root = process.getuid?.() === 0;
if (!root) console.warn("tests of older connections are skipped: they need root");

const SERVICE = "172.31.7.1:8080";
const OTHER = "172.31.7.2:8080";
const SERVICE_6 = "[fd00:7::1]:8080";

describe.skipIf(!root)("connections older than the attach", () => {
  let lab: DatapathLab;
  const clients: RunningClient[] = [];
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.serve({ service: SERVICE, other: OTHER, six: SERVICE_6 });
  });
  afterAll(async () => {
    for (const client of clients) await client.close();
    await lab?.remove();
  });

  async function older(): Promise<PreexistingConnections | undefined> {
    const module = join(import.meta.dirname, "../../src/datapath/inspect/preexisting-connections.ts");
    const text = await output(
      placed(
        [
          process.execPath,
          "-e",
          `const { preexistingConnections } = await import(${JSON.stringify(module)});
           console.log(JSON.stringify(preexistingConnections(${JSON.stringify(lab.bpffs)}) ?? null));`,
        ],
        { netns: lab.namespace.path },
      ),
    );
    return JSON.parse(text) ?? undefined;
  }

  async function keep(at: string, count: number): Promise<void> {
    const { client, tally } = await lab.keep(at, count);
    expect(tally).toMatchObject({ made: count, errors: {} });
    clients.push(client);
  }

  test("those to a governed address count, with their cgroup; those to others and later ones don't", async () => {
    await keep(SERVICE, 3);
    await keep(SERVICE_6, 2);
    await keep(OTHER, 4);
    const mesh = emptyMesh();
    addCluster(mesh, "c", [endpoint(SERVICE)]);
    addCluster(mesh, "gone", [], { kind: "passthrough" });
    addFrontend(mesh, SERVICE, { kind: "cluster", cluster: "c" });
    addFrontend(mesh, SERVICE_6, { kind: "refuse", reason: "not-in-registry" });
    addFrontend(mesh, OTHER, { kind: "cluster", cluster: "gone" });
    lab.publish(mesh);
    await keep(SERVICE, 5);
    expect(await older()).toEqual({
      connections: 5,
      complete: true,
      cgroups: [{ cgroup: lab.cgroup, connections: 5 }],
    });
  });

  test("what an enrolled server accepts is not its own connection, whatever the mesh's default says", async () => {
    // One app, both ends of one connection.
    const app = `import socket, sys
server = socket.create_server(("172.31.7.2", 0))
client = socket.create_connection(server.getsockname(), source_address=("172.31.7.1", 0))
accepted = server.accept()
print("ready", flush=True)
sys.stdin.readline()`;
    const client = new RunningClient(
      placed(["/usr/bin/python3", "-c", app], { netns: lab.namespace.path, cgroup: lab.cgroup }),
    );
    clients.push(client);
    expect(await client.line()).toBe("ready");
    const mesh = emptyMesh();
    mesh.fallback = { kind: "refuse", reason: "not-in-registry" };
    lab.publish(mesh);
    expect((await older())?.connections).toBe(3 + 2 + 4 + 1);
  });

  test("an excluded address is nobody's to govern", async () => {
    lab.datapath.govern({ ...lab.options, excludes: [{ address: "172.31.7.0", length: 24, port: 0 }] });
    expect((await older())?.connections).toBe(2);
    lab.datapath.govern(lab.options);
  });

  test("a unit that is enrolled by name counts as its cgroup does", async () => {
    lab.datapath.govern({ ...lab.options, cgroups: [], units: [basename(lab.cgroup)] });
    expect(await older()).toMatchObject({ connections: 10, cgroups: [{ cgroup: lab.cgroup }] });
    lab.datapath.govern(lab.options);
  });

  test("nobody is enrolled, or all is shadow: there is nothing to count", async () => {
    lab.datapath.govern({ ...lab.options, cgroups: [] });
    expect(await older()).toMatchObject({ connections: 0 });
    lab.datapath.govern({ ...lab.options, shadow: true });
    expect(await older()).toBeUndefined();
    lab.datapath.govern(lab.options);
  });
});
