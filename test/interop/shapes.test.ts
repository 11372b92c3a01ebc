/** Shapes of configuration that were once got wrong (shapes.yaml), by real connections under a real istiod. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseAllDocuments } from "yaml";
import type { KubeObject } from "../control-plane/kube.ts";
import { MeshLab, missing } from "./mesh-lab.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

/** A real address of the external hosts, and the ports that they declare: HTTP, TLS and TCP of STATIC and DNS entries. */
const REAL = "10.66.0.2";
const DECLARED = [8180, 8443, 8190, 8181, 8445, 8191];
const UNDECLARED = 8199;

describe.skipIf(why !== undefined)("shapes under a real istiod", () => {
  let lab: MeshLab;

  beforeAll(async () => {
    lab = await MeshLab.create({ meshConfig: { outboundTrafficPolicy: { mode: "REGISTRY_ONLY" } } });
    await lab.serve({ a: "10.66.0.1:7001", b: "10.66.0.2:7001", c: "10.66.0.3:7001", d: "10.67.0.1:7001" });
    await lab.serve(
      Object.fromEntries([...DECLARED, UNDECLARED].map((port) => [`real-${port}`, `${REAL}:${port}`])),
    );
    const text = readFileSync(join(import.meta.dirname, "shapes.yaml"), "utf8");
    await lab.plane.kube.apply(...parseAllDocuments(text).map((one) => one.toJS() as KubeObject));
    await lab.startedAgent();
    // istiod allocates addresses a moment later.
    await lab.connectUntil("the hosts are declared", REAL, 8191, ({ made }) => made === 1);
  }, 600_000);

  afterAll(async () => {
    await lab?.remove();
  }, 60_000);

  const notesOf = async (service: string) => {
    const { mesh } = await lab.status();
    return mesh.serviceNotes.find((one) => one.service === service)?.notes.map(({ text }) => text) ?? [];
  };

  test("240.0.0.0/4 is redirected like any service address", async () => {
    const tally = await lab.connect("240.1.2.3", 7100, { count: 20 });
    expect(tally).toMatchObject({ made: 20, errors: {}, peers: { "240.1.2.3 7100": 20 } });
    expect(Object.keys(tally.by).sort()).toEqual(["a", "b"]);
  });

  test("a frontend that no connection reaches is listed", async () => {
    expect(await notesOf("meta.shop.internal:7101")).toEqual([
      "no connection to 169.254.169.254:7101 is governed: 169.254.0.0/16 (link-local) is always exempt",
    ]);
    expect((await lab.connect("169.254.169.254", 7101)).by).toEqual({});
  });

  test("resolution NONE with targetPort keeps the address and changes the port, also for a block", async () => {
    expect(await lab.connect("10.66.0.3", 7111, { count: 3 })).toMatchObject({
      by: { c: 3 },
      errors: {},
      peers: { "10.66.0.3 7111": 3 },
    });
    expect(await lab.connect("10.67.0.1", 7112, { count: 3 })).toMatchObject({
      by: { d: 3 },
      errors: {},
      peers: { "10.67.0.1 7112": 3 },
    });
    // The port that needs no change, and one that nobody declared.
    expect((await lab.connect("10.66.0.3", 7001)).by).toEqual({ c: 1 });
    expect((await lab.connect("10.66.0.3", 7113)).errors).toEqual({ EPERM: 1 });
    for (const service of ["none.shop.internal:7111", "noneblock.shop.internal:7112"])
      expect((await notesOf(service)).filter((text) => text.includes("refused"))).toEqual([]);
  });

  test("maxConnections counts the connections that live", async () => {
    const { client, tally } = await lab.keep({ address: "10.200.3.1", port: 7103, count: 3 });
    expect(tally).toMatchObject({ made: 2, errors: { ECONNREFUSED: 1 } });
    expect((await lab.connect("10.200.3.2", 7103, { count: 3 })).made).toBe(3);
    await client.close();
    await lab.connectUntil("a slot is free", "10.200.3.1", 7103, ({ made }) => made === 1);
  });

  test("declared external hosts are reached at their real address, HTTP, TLS and TCP, and nothing else is", async () => {
    for (const port of DECLARED) {
      const tally = await lab.connect(REAL, port);
      expect({ port, by: tally.by, errors: tally.errors }).toEqual({
        port,
        by: { [`real-${port}`]: 1 },
        errors: {},
      });
    }
    expect((await lab.connect(REAL, UNDECLARED)).errors).toEqual({ EPERM: 1 });
    expect((await lab.connectOutside(REAL, UNDECLARED)).made).toBe(1);
    for (const service of ["ext.shop.internal:8180", "ext.shop.internal:8443", "extdns.shop.internal:8191"])
      expect(await notesOf(service)).toContain(
        "istiod allocated its only address: connections to a real address of it go there as they are, without balancing or failover",
      );
  });

  test("the addresses that istiod allocated lead to the endpoints", async () => {
    const dumped = await lab.kmesh("dump", "model", "--output", "json");
    const frontends: { service: string; match: { address?: string; port: number } }[] = JSON.parse(
      dumped.stdout,
    ).frontends;
    for (const [host, server, ports] of [
      ["ext", "a", [8180, 8443, 8190]],
      ["extdns", "c", [8181, 8445, 8191]],
    ] as const) {
      for (const port of ports) {
        const address = Object.values(frontends).find(
          ({ service, match }) => service === `${host}.shop.internal:${port}` && match.address,
        )?.match.address;
        expect(address).toStartWith("240.240.");
        expect(await lab.connect(address ?? "", port)).toMatchObject({
          by: { [server]: 1 },
          peers: { [`${address} ${port}`]: 1 },
        });
      }
    }
  });

  test("server names are not looked at, and the remark says where connections go", async () => {
    const tally = await lab.connect("10.200.4.1", 8444, { count: 20 });
    expect(Object.keys(tally.by).sort()).toEqual(["a", "b"]);
    expect(await notesOf("sni.shop.internal:8444")).toContain(
      "routes by TLS server name (a.sni.shop.internal, b.sni.shop.internal) lead to different clusters: the name is not looked at, all connections go to outbound|8444||sni.shop.internal",
    );
  });

  test("status says how each type is answered, and dump shows the part that is asked for", async () => {
    const { stream } = await lab.status();
    for (const type of ["cluster", "endpoints", "listener", "route", "names"] as const) {
      expect({ type, ...stream.types[type].answered }).toMatchObject({ type, nacks: 0 });
      expect(stream.types[type].answered?.acks).toBeGreaterThan(0);
    }
    expect((await lab.kmesh("status")).stdout).toMatch(/CDS +SYNCED +\d+ +\d+ ACK, 0 NACK +20\d\d-/);
    for (const part of ["model", "tables"]) {
      const dumped = await lab.kmesh("dump", part, "--port", "7111", "--type", "frontends", "-o", "json");
      expect(Object.keys(JSON.parse(dumped.stdout))).toEqual(["schema", "frontends"]);
      expect(dumped.stdout).toContain("none.shop.internal:7111");
      expect(dumped.stdout).not.toContain("7101");
    }
    expect(await lab.kmesh("dump", "received", "--fqdn", "nobody.invalid")).toMatchObject({ code: 1 });
    expect(await lab.kmesh("dump", "model", "--type", "frontend")).toMatchObject({ code: 2 });
  });

  test("in an open mesh the same connections pass, and the remarks stay", async () => {
    await lab.plane.setMeshConfig({ outboundTrafficPolicy: { mode: "ALLOW_ANY" } });
    await lab.connectUntil("all ports are open", REAL, UNDECLARED, ({ made }) => made === 1);
    expect((await lab.connect(REAL, 8190)).by).toEqual({ "real-8190": 1 });
    expect((await notesOf("ext.shop.internal:8190"))[0]).toStartWith("istiod allocated its only address");
  });
});
