/** Real clients ask for mesh names while the real single file runs, and when it was killed: the kernel answers. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { NamesStatus } from "../../src/names/status.ts";
import { AgentLab, KMESH, missing, SERVICE, shop, UPSTREAMS } from "../e2e/agent-lab.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, type RunResult, run } from "../lab/process.ts";

const why = missing();
if (why) console.warn(`skipped: names: ${why}`);

setDefaultTimeout(90_000);

const HOST = "shop.demo.svc.cluster.local";
const DUAL = "dual.demo.internal";
const SERVER = { v4: "10.77.0.2", v6: "fd77::2" };

describe.skipIf(why !== undefined)("mesh names", () => {
  let lab: AgentLab;
  let beyond: NetworkNamespace;
  let agent: Awaited<ReturnType<AgentLab["liveAgent"]>>;

  const names = async (): Promise<NamesStatus> => {
    const { names } = await lab.toldStatus();
    if (!names) throw new Error("the agent says nothing of names");
    return names;
  };
  /** Runs a shell command in the lab's namespace, with name servers of its own. */
  const ask = (command: string, servers: readonly string[], enrolled = true): Promise<RunResult> => {
    const file = join(lab.folder, `resolv-${servers.join("_").replaceAll(":", "-")}`);
    writeFileSync(
      file,
      `${servers.map((server) => `nameserver ${server}`).join("\n")}\noptions timeout:1 attempts:2\n`,
    );
    return run(["unshare", "-m", "sh", "-c", `mount --bind ${file} /etc/resolv.conf && ${command}`], {
      netns: lab.namespace.path,
      ...(enrolled ? { cgroup: lab.apps } : {}),
    });
  };

  beforeAll(async () => {
    const mesh = shop({ v1: 50, v2: 50 });
    const endpoints = [{ address: UPSTREAMS.a, port: 8080 }];
    lab = await AgentLab.create({
      services: [
        ...mesh.services,
        { host: DUAL, addresses: ["10.96.0.20", "fd96::20"], port: 80, endpoints },
      ],
    });
    beyond = await NetworkNamespace.create("far");
    await lab.namespace.connect(
      beyond,
      ["10.77.0.1/24", "fd77::1/64"],
      [`${SERVER.v4}/24`, `${SERVER.v6}/64`],
    );
    agent = await lab.liveAgent();
    await eventually("names are live", async () => (await names()).entries > 0);
  }, 60_000);
  afterAll(async () => {
    await beyond?.remove();
    if (lab) expect(await lab.remove()).toEqual([]);
  }, 30_000);

  test("the interfaces that are there are covered", async () => {
    const { interfaces, askers } = await names();
    expect(askers).toBe("enrolled");
    expect(interfaces.length).toBeGreaterThanOrEqual(2);
    for (const one of interfaces) expect(one.way).not.toBe("none");
  });

  for (const [where, server] of [
    ["on loopback", "127.0.0.1"],
    ["on loopback by IPv6", "::1"],
    ["on the uplink", SERVER.v4],
    ["on the uplink by IPv6", SERVER.v6],
  ] as const) {
    test(`getent and curl ${where}, where no server is`, async () => {
      expect((await ask(`getent ahostsv4 ${HOST}`, [server])).stdout).toContain(SERVICE);
      const dual = (await ask(`getent ahosts ${DUAL.toUpperCase()}`, [server])).stdout;
      expect(dual).toContain("10.96.0.20");
      expect(dual).toContain("fd96::20");
      const page = await ask(`curl -s -m 5 http://${HOST}/`, [server]);
      expect([page.code, page.stderr]).toEqual([page.code, ""]);
      expect((await ask(`getent hosts ${SERVICE}`, [server])).stdout).toContain(HOST);
    });
  }

  test("who is not enrolled asks the server itself", async () => {
    const { code } = await ask(`getent ahostsv4 ${HOST}`, ["127.0.0.1"], false);
    expect(code).toBe(2);
    expect((await names()).counts["passed-not-enrolled"]).toBeGreaterThan(0);
  });

  /** What kmesh doctor finds about names. */
  const doctor = async (servers: readonly string[], enrolled: boolean) => {
    const command = `${KMESH} doctor --istiod=127.0.0.1:15010 --plaintext --output=json ${lab.folders.join(" ")}`;
    const { stdout } = await ask(command, servers, enrolled);
    const { checks } = JSON.parse(stdout) as { checks: { check: string; findings: { text: string }[] }[] };
    return checks.find(({ check }) => check === "names")?.findings[0]?.text;
  };

  test("several name servers: one that can't be reached is passed over, and doctor says when none can be", async () => {
    // Nobody has this address, so nobody answers ARP for it: the query never gets as far as the interface.
    const absent = "10.77.0.99";
    // There is no route to this one.
    const apart = "203.0.113.9";
    for (const dead of [absent, apart]) {
      expect((await ask(`getent ahostsv4 ${HOST}`, [dead, SERVER.v4])).stdout).toContain(SERVICE);
      expect((await ask(`getent ahostsv4 ${HOST}`, [SERVER.v4, dead])).stdout).toContain(SERVICE);
    }
    const { code, stdout } = await ask(`getent ahostsv4 ${HOST}`, [absent, apart]);
    expect([code, stdout]).toEqual([2, ""]);
    const text = await doctor([absent, apart], true);
    expect(text).toContain(`${absent}: nobody on its network answers to its address (ARP)`);
    expect(text).toContain(`${apart}: there is no route to it`);
    // A server that is down behind a router is no matter: the query leaves, and the kernel answers it.
    await lab.namespace.ip("route", "add", `${apart}/32`, "via", SERVER.v4);
    expect((await ask(`getent ahostsv4 ${HOST}`, [apart])).stdout).toContain(SERVICE);
    await lab.namespace.ip("route", "delete", `${apart}/32`);
  });

  test("kmesh resolve and kmesh doctor say what the kernel answers, and what the machine's resolver makes of it", async () => {
    const resolved = await lab.json<{
      answers: { event: string; entry: string | null; records: string[] }[];
    }>("resolve", HOST);
    expect(resolved.answers[0]).toMatchObject({ event: "answered-a", entry: HOST, records: [SERVICE] });
    expect((await lab.kmesh("resolve", "example.com")).stdout).toContain("not answered: no mesh name");
    expect((await lab.kmesh("resolve", SERVICE)).stdout).toContain(HOST);
    expect(await doctor(["127.0.0.1"], true)).toContain("through the machine's resolver");
    expect(await doctor(["127.0.0.1"], false)).toContain("not in a governed cgroup");
    expect(await doctor([], true)).toContain("names no server");
  });

  test("an interface that comes later is covered, too", async () => {
    await lab.namespace.ip("link", "add", "later", "type", "veth", "peer", "name", "later2");
    await eventually("the new interface is covered", async () =>
      (await names()).interfaces.some(({ name, way }) => name === "later" && way !== "none"),
    );
    await lab.namespace.ip("link", "delete", "later");
    await eventually("the link of one that is gone is removed", async () =>
      (await names()).interfaces.every(({ name }) => name !== "later"),
    );
  });

  test("Python, Node and curl resolve while the agent is dead, and the next one goes on counting", async () => {
    const before = (await names()).counts["answered-a"] ?? 0;
    await agent.stop("SIGKILL");
    for (const server of ["127.0.0.1", SERVER.v4]) {
      const python = `python3 -c "import socket; print(socket.gethostbyname('${HOST}'))"`;
      expect((await ask(python, [server])).stdout.trim()).toBe(SERVICE);
      if (existsSync("/usr/bin/node")) {
        const node = `/usr/bin/node -e "require('dns').resolve4('${HOST}', (e, a) => console.log(e ?? a.join()))"`;
        expect((await ask(node, [server])).stdout.trim()).toBe(SERVICE);
      }
      const page = await ask(`curl -s -m 5 -o /dev/null -w '%{remote_ip}' http://${HOST}/`, [server]);
      expect(page.stdout).toBe(SERVICE);
    }
    agent = await lab.liveAgent();
    await eventually("names are live", async () => (await names()).entries > 0);
    expect((await names()).counts["answered-a"]).toBeGreaterThan(before);
  });
});
