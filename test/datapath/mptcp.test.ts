/** MPTCP sockets: an app that uses IPPROTO_MPTCP gets what a TCP app gets. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { kernelRelease } from "../../src/kernel/features.ts";
import { type Ejection, emptyMesh } from "../../src/mesh/model.ts";
import { eventually, OwnedProcess, output } from "../lab/process.ts";
import { DatapathLab } from "./lab.ts";
import { addCluster, addFrontend, endpoint } from "./mesh.ts";

setDefaultTimeout(90_000);
const { major, minor } = kernelRelease();
const able = major * 100 + minor >= 519 && existsSync("/proc/sys/net/mptcp/enabled");
const root = process.getuid?.() === 0;
if (!root || !able)
  console.warn("MPTCP tests are skipped: they need root, and MPTCP of a kernel from 5.19 on");

const SPOKEN = "172.31.1.1:8090";
const PLAIN = "172.31.1.2:8080";
const RULE: Ejection = { after: 3, base: 60_000, longest: 300_000, percent: 50, enforcing: 100 };

describe.skipIf(!root || !able)("MPTCP", () => {
  let lab: DatapathLab;
  let server: OwnedProcess | undefined;
  const folder = mkdtempSync(join(tmpdir(), "kmesh-mptcp-"));
  beforeAll(async () => {
    lab = await DatapathLab.create();
    await lab.namespace.addLoopback("172.31.1.1", "172.31.2.1");
    await lab.serve({ plain: PLAIN });
    server = new OwnedProcess({
      name: "mptcp-echo",
      log: join(folder, "echo.log"),
      command: [
        "/usr/bin/python3",
        join(import.meta.dirname, "mptcp-echo.py"),
        "spoken",
        ...SPOKEN.split(":"),
      ],
      netns: lab.namespace.path,
    });
    const started = server;
    await eventually("the server listens", () => started.output().includes("ready"));
    const mesh = emptyMesh();
    const add = (i: number, name: string, at: string[], more = {}) => {
      addCluster(
        mesh,
        name,
        at.map((each) => endpoint(each)),
        more,
      );
      addFrontend(mesh, `10.96.6.${i}:80`, { kind: "cluster", cluster: name }, `${name}:80`);
      addFrontend(mesh, `[2001:2::6:${i}]:80`, { kind: "cluster", cluster: name }, `${name}:80`);
    };
    add(1, "spoken", [SPOKEN]);
    add(2, "plain", [PLAIN]);
    add(3, "limited", [SPOKEN], { maxConnections: 20 });
    add(4, "ejecting", [PLAIN, "172.31.1.2:9"], { ejection: RULE });
    mesh.fallback = { kind: "refuse", reason: "not-in-registry" };
    lab.publish(mesh);
  });
  afterAll(async () => {
    await server?.stop("SIGKILL");
    await lab?.remove();
    rmSync(folder, { recursive: true, force: true });
  });

  const cluster = (name: string) => lab.datapath.inspect().clusters.find((each) => each.name === name);
  const live = (name: string) => cluster(name)?.live ?? Number.NaN;
  const counters = (service: string) =>
    lab.datapath.inspect().services.find((each) => each.service === service);

  test.each([
    ["a server that speaks MPTCP", "10.96.6.1", "spoken", false],
    ["a server of plain TCP", "10.96.6.2", "plain", false],
    ["a v4-mapped socket", "10.96.6.1", "spoken", true],
    ["an IPv6 socket", "2001:2::6:1", "spoken", false],
  ])("%s: the app sees the address that it asked for", async (_, address, who, mapped) => {
    const at = address.includes(":") ? `[${address}]:80` : `${address}:80`;
    const tally = await lab.connect(at, { count: 5, mptcp: true, mapped });
    const peer = `${mapped ? "::ffff:" : ""}${address} 80`;
    expect(tally).toMatchObject({ made: 5, by: { [who]: 5 }, errors: {}, peers: { [peer]: 5 } });
    await eventually("the connections are taken back", () => live(who) === 0);
  });

  test("each is counted once, and max_connections holds", async () => {
    const before = counters("limited:80")?.redirected ?? 0;
    const { client, tally } = await lab.keep("10.96.6.3:80", 30, { mptcp: true });
    expect(tally).toMatchObject({ made: 20, errors: { ECONNREFUSED: 10 } });
    expect(live("limited")).toBe(20);
    expect((counters("limited:80")?.redirected ?? 0) - before).toBe(20);
    await client.close();
    await eventually("the connections are taken back", () => live("limited") === 0);
  });

  test("failed connects are seen, and their endpoint is ejected", async () => {
    const tally = await lab.connect("10.96.6.4:80", { count: 20, mptcp: true });
    expect(tally.errors).toEqual({ ECONNREFUSED: 3 });
    expect(cluster("ejecting")?.endpoints.filter(({ ejectedFor }) => ejectedFor > 0)).toMatchObject([
      { address: "172.31.1.2", port: 9, failed: 3 },
    ]);
    await eventually("the connections are taken back", () => live("ejecting") === 0);
  });

  test("further paths of a connection are left alone, and it stays one connection", async () => {
    const { name, path } = lab.namespace;
    const paths = () => output(["ip", "mptcp", "endpoint", "show"], { netns: path });
    await output(["ip", "-n", name, "mptcp", "limits", "set", "subflow", "2"]);
    await output(["ip", "-n", name, "mptcp", "endpoint", "add", "172.31.2.1", "dev", "lo", "subflow"]);
    expect(await paths()).toContain("172.31.2.1");
    const before = counters("")?.refused["not-in-registry"] ?? 0;
    const { client, tally } = await lab.keep("10.96.6.1:80", 3, { mptcp: true });
    try {
      expect(tally).toMatchObject({ made: 3, by: { spoken: 3 }, peers: { "10.96.6.1 80": 3 } });
      const subflows = async () => {
        const text = await output(["ss", "-tnH", "src", "172.31.2.1", "dst", "172.31.1.1:8090"], {
          netns: path,
        });
        return text.split("\n").filter((line) => line.startsWith("ESTAB")).length;
      };
      await eventually("each has its second path", async () => (await subflows()) === 3);
      expect(live("spoken")).toBe(3);
      expect(counters("")?.refused["not-in-registry"] ?? 0).toBe(before);
    } finally {
      await client.close();
    }
    await eventually("the connections are taken back", () => live("spoken") === 0);
  });
});
