/** Mesh names through a real systemd-resolved with nss-resolve, as on most machines with systemd. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { eventually } from "../lab/process.ts";
import { fetchRoot, SERVICE, SystemdMachine } from "./machine.ts";

setDefaultTimeout(60_000);

const { root, missing: why } = fetchRoot();
if (why !== undefined) console.warn(`skipped: systemd-resolved: ${why}`);

const HOST = "shop.demo.svc.cluster.local";
/** Nobody is there; packets leave for it. */
const SERVER = "10.77.0.2";

describe.skipIf(why !== undefined)("systemd-resolved", () => {
  let machine: SystemdMachine;
  const resolved = async () => (await machine.run("getent", "ahostsv4", HOST)).stdout;
  const names = async () => JSON.parse(await machine.output("kmesh", "status", "--output=json")).names;

  beforeAll(async () => {
    machine = await SystemdMachine.boot(root, true);
    await machine.network("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0");
    await machine.network("ip", "link", "set", "up0", "up");
    await machine.network("ip", "link", "set", "far0", "up");
    await machine.network("ip", "addr", "add", "10.77.0.1/24", "dev", "up0");
    const far = ["lladdr", "02:00:00:00:00:02", "dev", "up0", "nud", "permanent"];
    await machine.network("ip", "neigh", "add", SERVER, ...far);
    machine.write("/etc/nsswitch.conf", "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n");
    // Not the whole machine's cgroup: then who asks would not matter.
    machine.write("/run/systemd/system/shop.service", "[Service]\nExecStart=/bin/sleep 1000\n");
    machine.configure({ unit: ["shop.service"] });
    await machine.output("systemctl", "start", "systemd-resolved", "shop");
    await machine.output("systemctl", "restart", "kmesh");
    await machine.output("resolvectl", "dns", "up0", SERVER);
    await eventually("names are live", async () => (await names()).entries > 0);
  }, 120_000);
  afterAll(async () => {
    if (machine) expect(await machine.remove()).toEqual([]);
  }, 60_000);

  test("keeps .local to itself: doctor says so, and a domain in resolved.conf does not help", async () => {
    expect(await resolved()).toBe("");
    const doctor = await machine.run("kmesh", "doctor");
    expect(doctor.stdout).toContain(
      `${HOST} does not resolve: systemd-resolved keeps names below .local to itself`,
    );
    expect(doctor.stdout).toContain("resolvectl domain up0 '~cluster.local'");
    const status = await machine.output("kmesh", "status", "--problems");
    expect(status).toContain(`${HOST} does not resolve: systemd-resolved keeps names below .local to itself`);
    expect(status).toContain("resolvectl domain up0 '~cluster.local'");
    const install = await machine.run(machine.download, "install", "--dry-run");
    expect(install.stderr.replaceAll(/\s+/g, " ")).toContain(
      "names below svc.cluster.local, the usual domain of a mesh, will not resolve: systemd-resolved keeps",
    );
    await machine.output("mkdir", "-p", "/etc/systemd/resolved.conf.d");
    machine.write("/etc/systemd/resolved.conf.d/kmesh.conf", "[Resolve]\nDomains=~cluster.local\n");
    await machine.output("systemctl", "restart", "systemd-resolved");
    await machine.output("resolvectl", "dns", "up0", SERVER);
    expect(await resolved()).toBe("");
  });

  test("with doctor's cure names resolve, the whole machine is answered, and the agent may be dead", async () => {
    await machine.output("resolvectl", "domain", "up0", "~cluster.local");
    expect(await resolved()).toContain(SERVICE);
    expect((await machine.run("kmesh", "doctor")).stdout).toContain(`${HOST} resolves to ${SERVICE}`);
    expect((await names()).askers).toBe("machine");
    const status = JSON.parse(await machine.output("kmesh", "status", "--output=json"));
    expect(status.lostNames).toBeNull();
    const stub = { via: "127.0.0.53", program: "systemd-resolved", unit: "systemd-resolved.service" };
    expect(status.names.resolvers).toEqual([{ ...stub, governed: true }]);
    // Without nss-resolve the packet is the app's, and resolved's own is not answered.
    machine.write("/etc/nsswitch.conf", "passwd: files\nhosts: files dns\n");
    await eventually("status knows the stub, which is not governed", async () => {
      const { askers, resolvers } = await names();
      return askers === "enrolled" && Bun.deepEquals(resolvers, [{ ...stub, governed: false }]);
    });
    machine.write("/etc/nsswitch.conf", "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n");
    await eventually("resolved asks for all again", async () => (await names()).askers === "machine");
    await machine.output("systemctl", "stop", "kmesh");
    await machine.output("resolvectl", "flush-caches");
    expect(await resolved()).toContain(SERVICE);
    expect(await machine.output("resolvectl", "query", HOST)).toContain(`${HOST}: ${SERVICE}`);
  });

  test("so they do with the domain and a server in resolved.conf, and single labels by a search domain", async () => {
    machine.write(
      "/etc/systemd/resolved.conf.d/kmesh.conf",
      `[Resolve]\nDNS=${SERVER}\nDomains=demo.svc.cluster.local ~cluster.local\n`,
    );
    await machine.output("systemctl", "restart", "systemd-resolved");
    expect(await resolved()).toContain(SERVICE);
    expect((await machine.run("getent", "ahostsv4", "shop")).stdout).toContain(SERVICE);
    // .local is among its negative trust anchors: an answer that is not signed is as good.
    machine.write("/etc/systemd/resolved.conf.d/dnssec.conf", "[Resolve]\nDNSSEC=yes\n");
    await machine.output("systemctl", "restart", "systemd-resolved");
    expect(await machine.output("resolvectl", "dnssec")).toMatch(/Global: yes/);
    expect(await machine.output("resolvectl", "query", HOST)).toMatch(
      new RegExp(`${HOST}: ${SERVICE}[\\s\\S]*Data is authenticated: no`),
    );
  });
});
