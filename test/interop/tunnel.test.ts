/** A peer that takes mutual TLS alone, as a real istiod describes it: an unmodified app reaches it through the tunnel. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { adminSocket } from "../../src/admin/status.ts";
import { identityStore } from "../../src/machine/identity-store.ts";
import type { EdgesDocument } from "../../src/telemetry/model.ts";
import type { TunnelStatus } from "../../src/tunnel/process/status-file.ts";
import { eventually, OwnedProcess, output } from "../lab/process.ts";
import { connectedEntry, workloadGroup, workloadService } from "./membership.ts";
import { KMESH, MeshLab, missing } from "./mesh-lab.ts";
import { serviceEntry } from "./objects.ts";
import { SecondMachine } from "./second-machine.ts";
import { StrictPeer } from "./strict-peer.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

/** The series of connections that an agent's machine accepted, by its folder: each one's labels, and how many it opened. */
async function accepted(runDir: string): Promise<({ opened: number } & Record<string, string | number>)[]> {
  const text = await (
    await fetch("http://localhost/metrics", { unix: adminSocket(runDir), proxy: "" })
  ).text();
  const series = /^istio_tcp_connections_opened(?:_total)?\{(reporter="destination".*)\} (\d+)$/gm;
  return [...text.matchAll(series)].map(([, labels = "", opened]) => ({
    ...Object.fromEntries([...labels.matchAll(/(\w+)="([^"]*)"/g)].map(([, name, value]) => [name, value])),
    opened: Number(opened),
  }));
}

/** Addresses of the two machines. */
const [A, B] = ["10.79.0.1", "10.79.0.2"];

describe.skipIf(why !== undefined)("through the tunnel, with a real istiod", () => {
  let lab: MeshLab;
  const started: OwnedProcess[] = [];
  let second: SecondMachine | undefined;
  let joined: string[] = [];

  beforeAll(async () => {
    lab = await MeshLab.create();
    const ca = join(lab.folder, "root-cert.pem");
    const token = join(lab.folder, "istio-token");
    writeFileSync(ca, await lab.plane.rootCertificate());
    writeFileSync(token, await lab.plane.kube.serviceAccountToken("shop", "vm"), { mode: 0o600 });
    await lab.serve({ plain: "172.31.1.1:8080" });
    await lab.plane.kube.apply(
      serviceEntry("peer", {
        addresses: ["10.97.1.1"],
        ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8443 }],
        endpoints: [{ address: "172.31.1.1", serviceAccount: "vm" }],
      }),
      serviceEntry("other", {
        addresses: ["10.97.1.2"],
        ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8443 }],
        endpoints: [{ address: "172.31.1.1", serviceAccount: "somebody-else" }],
      }),
      serviceEntry("plain", {
        addresses: ["10.97.1.3"],
        ports: [{ number: 7000, name: "tcp", protocol: "TCP", targetPort: 8080 }],
        endpoints: [{ address: "172.31.1.1" }],
      }),
    );
    joined = [
      `--istiod=localhost:${lab.plane.ports.secureGrpc}`,
      `--ca=${ca}`,
      `--token=${token}`,
      "--tunnel=on",
    ];
    await lab.startedAgent(...joined);
  }, 600_000);

  afterAll(async () => {
    await second?.remove();
    for (const each of started) await each.stop("SIGKILL");
    await lab?.remove();
  }, 60_000);

  async function begin(name: string, ready: string, command: string[]): Promise<void> {
    const begun = new OwnedProcess({
      name,
      log: join(lab.folder, `${name}.log`),
      command,
      netns: lab.namespace.path,
    });
    started.push(begun);
    await eventually(`${name} is ready`, () => begun.output().includes(ready));
  }

  test("its identity is checked; plaintext peers are reached directly; the agent may be dead", async () => {
    const identity = identityStore(join(lab.folder, "state")).load();
    if (!identity) throw new Error("the agent has no certificate");
    started.push(
      await StrictPeer.start({
        ...{ folder: lab.folder, netns: lab.namespace.path, identity },
        at: { address: "172.31.1.1", port: 8443 },
      }),
    );
    await begin("tunnel", "accepts (pid", [KMESH, "tunnel", ...lab.folders]);

    const plaintext = await lab.connectOutside("172.31.1.1", 8443);
    expect(plaintext.by).toEqual({});
    const strict = await lab.connect("10.97.1.1", 7000, { count: 10 });
    expect({ by: strict.by, peers: strict.peers }).toEqual({
      by: { strict: 10 },
      peers: { "10.97.1.1 7000": 10 },
    });
    expect((await lab.connect("10.97.1.2", 7000)).by).toEqual({});
    expect((await lab.connect("10.97.1.3", 7000)).by).toEqual({ plain: 1 });
    // Only what was led there may enter.
    expect((await lab.connectOutside("127.0.0.2", 15001)).errors).toEqual({ EPERM: 1 });
    const status = await lab.kmesh("status", "--output", "json");
    const { kernel } = JSON.parse(status.stdout);
    expect(kernel.tunnel).toEqual({ istio: 2 });

    const { client } = await lab.keep({ address: "10.97.1.1", port: 7000, count: 3 });
    await lab.agent.stop("SIGKILL");
    expect((await lab.connect("10.97.1.1", 7000, { count: 5 })).by).toEqual({ strict: 5 });
    await client.close();
  });

  test("two VMs under STRICT: istiod tells of their tunnels, apps talk both ways, plaintext stays out", async () => {
    await lab.plane.kube.apply(workloadGroup("a"), workloadGroup("b"), {
      apiVersion: "security.istio.io/v1",
      kind: "PeerAuthentication",
      metadata: { name: "default", namespace: "shop" },
      spec: { mtls: { mode: "STRICT" } },
    });
    await lab.plane.kube.apply(workloadService("a", "10.97.2.1"), workloadService("b", "10.97.2.2"));
    second = await SecondMachine.create(lab, `${A}/24`, `${B}/24`);
    await lab.serve({ a: `${A}:8080` });
    const upstream = join(import.meta.dirname, "upstream.ts");
    await second.begin("b", "ready", second.namespace.path, [process.execPath, upstream, `b=${B}:8080`]);
    const log = join(lab.folder, "access.log");
    const logged = [`--access-log=${log}`, "--access-log-format=json"];
    await lab.startedAgent(...joined, ...logged, "--workload-group=a", `--ip=${A}`);
    // Where both are offered, istiod has sidecars send mutual TLS; here there is HBONE alone.
    await second.start("outbound,hbone", ...joined, "--workload-group=b", `--ip=${B}`);

    const labels = async (entry: string) => (await connectedEntry(lab.plane, entry)).labels;
    const [tls, http] = ["security.istio.io/tlsMode", "networking.istio.io/tunnel"];
    expect(await labels(`a-${A}`)).toMatchObject({ [tls]: "istio", [http]: "http" });
    const ofB = await labels(`b-${B}`);
    expect([ofB[tls], ofB[http]]).toEqual(["disabled", "http"]);

    await lab.connectUntil("b answers", "10.97.2.2", 7000, ({ by }) => by.b === 1);
    await eventually("a answers", async () => (await second?.connect("10.97.2.1", 7000, 1))?.by.a === 1);
    // Ports are counted once an agent knows that they are its machine's.
    const [runA, runB] = [join(lab.folder, "run"), join(lab.folder, "second/run")];
    await eventually("b counts", async () => {
      await lab.connect("10.97.2.2", 7000);
      return (await accepted(runB)).length > 0;
    });
    await eventually("a counts", async () => {
      await second?.connect("10.97.2.1", 7000, 1);
      return (await accepted(runA)).length > 0;
    });
    const before = { a: await accepted(runA), b: await accepted(runB) };
    expect((await lab.connect("10.97.2.2", 7000, { count: 20 })).by).toEqual({ b: 20 });
    expect((await second.connect("10.97.2.1", 7000, 20)).by).toEqual({ a: 20 });
    const vm = "spiffe://cluster.local/ns/shop/sa/vm";
    for (const [run, old, peer, own] of [
      [runA, before.a, "b", "a"],
      [runB, before.b, "a", "b"],
    ] as const) {
      // One series: each connection once, at the app's end, for its caller.
      const wanted = (old[0]?.opened ?? 0) + 20;
      const [{ opened, ...labels } = { opened: 0 }, ...others] = await eventually(
        "all are counted",
        async () => {
          const now = await accepted(run);
          return (now[0]?.opened ?? 0) >= wanted && now;
        },
      );
      expect([opened, others]).toEqual([wanted, []]);
      expect(labels).toMatchObject({
        ...{ source_workload: peer, source_workload_namespace: "shop", source_principal: vm },
        ...{ destination_workload: own, destination_principal: vm },
        connection_security_policy: "mutual_tls",
      });
    }
    const line = await eventually("a line of the log", () => {
      const lines = readFileSync(log, "utf8").trim().split("\n");
      return lines.map((text) => JSON.parse(text)).findLast(({ direction }) => direction === "in");
    });
    expect(line).toMatchObject({
      ...{ peer: `${B} on port 8080`, workload: "b", mutual_tls: true, principal: vm, end: "closed" },
    });
    const { edges } = JSON.parse((await lab.kmesh("topology", "--output", "json")).stdout) as EdgesDocument;
    expect(edges.filter(({ kind }) => kind === "inbound")).toMatchObject([
      { from: `caller:${B}`, port: 8080, carried: { by: "istio", mutualTls: true, principal: vm } },
    ]);
    // A tunnel writes its status once a second.
    await Bun.sleep(1_200);
    const tunnelOf = (text: string): TunnelStatus => JSON.parse(text).tunnels[0];
    const here = tunnelOf((await lab.kmesh("status", "--output", "json")).stdout);
    const there = tunnelOf(await second.kmesh("status", "--output", "json"));
    expect(here.ways.inbound.total).toBeGreaterThanOrEqual(20);
    expect(there.ways.hbone.total).toBeGreaterThanOrEqual(20);
    expect([here.ways.hbone.total, there.ways.inbound.total]).toEqual([0, 0]);
    expect(Object.keys(there.identities)).toEqual(["spiffe://cluster.local/ns/shop/sa/vm"]);
    expect((await lab.status()).registration?.peers).toEqual({
      plaintext: [],
      mtls: ["a.shop.internal:7000"],
      hbone: [],
    });

    const page = (await lab.kmesh("status")).stdout;
    expect(page).toMatch(/from peers by mutual TLS: \d+ open, \d+ in all/);
    expect(page).toMatch(/b\.shop\.internal:7000 +out +1 endpoint by HBONE/);
    expect(page).toMatch(/this machine's port 8080 +in +mutual TLS alone/);
    const socket = join(lab.folder, "run/admin.sock");
    const metrics = await output(["curl", "-sf", "--unix-socket", socket, "http://agent/metrics"]);
    expect(metrics).toMatch(/^kmesh_tunnel_connections(_total)?\{pid="\d+",direction="inbound"\} [1-9]/m);
    expect(metrics).toMatch(
      /^kmesh_tunnel_failures(_total)?\{pid="\d+",direction="outbound",reason="wrong-san"\} 1/m,
    );
    const doctor = JSON.parse((await lab.kmesh("doctor", "--output=json", ...joined)).stdout);
    expect(doctor.checks.find(({ check }: { check: string }) => check === "tunnel")).toMatchObject({
      findings: [{ state: "ok", text: expect.stringContaining("its sockets listen; pid ") }],
    });

    // Not enrolled: plaintext from outside.
    expect((await second.connect(A, 8080, 3, false)).by).toEqual({});
    expect((await lab.connectOutside(B, 8080, { count: 3 })).by).toEqual({});
    await second.killAll();
    await lab.agent.stop("SIGKILL");
    for (const each of started.splice(0)) await each.stop("SIGKILL");
    const refused = [
      await second.connect(A, 8080, 3, false),
      await lab.connectOutside(B, 8080, { count: 3 }),
    ];
    for (const { by, errors } of refused)
      expect({ by, errors }).toEqual({ by: {}, errors: { ECONNREFUSED: 3 } });
  });
});
