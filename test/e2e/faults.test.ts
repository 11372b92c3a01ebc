/** Staged faults between real sockets: each is named by `kmesh topology --problems`, and healthy traffic by none. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { DemoMesh } from "../../src/demo/services.ts";
import type { EdgeHistory, EdgesDocument } from "../../src/telemetry/model.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, OwnedProcess, output, placed, run } from "../lab/process.ts";
import { AgentLab, missing } from "./agent-lab.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why) console.warn(`skipped: faults: ${why}`);

const service = (number: number, name: string, address: string, port: number) => ({
  host: `${name}.demo.svc.cluster.local`,
  addresses: [`10.96.1.${number}`],
  port: 80,
  protocol: "tcp" as const,
  balance: "round-robin" as const,
  endpoints: [{ address, port }],
});

describe.skipIf(why !== undefined)("faults", () => {
  let lab: AgentLab;
  let agent: OwnedProcess;
  let file: string;
  let link: OwnedProcess;
  let far: NetworkNamespace;
  const others: OwnedProcess[] = [];
  let mesh: DemoMesh;
  beforeAll(async () => {
    mesh = {
      services: [
        service(1, "healthy", "127.1.1.1", 9001),
        service(2, "reset", "127.1.1.2", 9002),
        // Its SYNs go out on loopback and come back to nobody.
        service(3, "timeout", "172.31.9.9", 80),
        service(4, "silent", "127.1.1.4", 9004),
        service(5, "lossy", "127.1.1.5", 9005),
        { ...service(6, "full", "127.1.1.6", 9006), maxConnections: 3 },
        // An app without IPv6 can use one of three.
        {
          ...service(7, "lonely", "127.1.1.7", 9007),
          endpoints: ["127.1.1.7", "fd00:1::7", "fd00:1::8"].map((address) => ({ address, port: 9007 })),
        },
        { ...service(8, "empty", "127.1.1.8", 9008), endpoints: [] },
        {
          ...service(9, "mixed", "127.1.2.1", 9009),
          endpoints: ["127.1.2.1", "127.1.2.2", "10.9.9.2"].map((address) => ({ address, port: 9009 })),
        },
        service(11, "late", "127.1.3.3", 9011),
        // istiod gives localities an outlier detection together with priorities.
        {
          ...service(10, "sick", "127.1.3.1", 9),
          endpoints: [
            { address: "127.1.3.1", port: 9, locality: "r1/z1/s1" },
            { address: "127.1.3.2", port: 9010, locality: "r2/z1/s1", priority: 1 },
          ],
        },
        {
          ...{ host: "api.example.com", addresses: ["172.31.200.0/24"], port: 443, endpoints: [] },
          resolution: "none",
        },
      ],
    };
    lab = await AgentLab.create(mesh);
    await output(["ip", "-n", lab.namespace.name, "route", "add", "172.31.9.0/24", "dev", "lo"]);
    far = await NetworkNamespace.create("far");
    const script = join(import.meta.dirname, "slow-link.py");
    link = new OwnedProcess({
      name: "slow link",
      log: join(lab.folder, "link.log"),
      command: ["/usr/bin/python3", script, far.name, "10.9.9.1", "10.9.9.2"],
      netns: lab.namespace.path,
    });
    await eventually("the link is up", () => link.output().includes("ready"));
    const server = new OwnedProcess({
      name: "server behind it",
      log: join(lab.folder, "far.log"),
      command: ["/usr/bin/python3", join(import.meta.dirname, "faults.py"), "far"],
      netns: far.path,
    });
    others.push(server, link);
    await eventually("its server listens", () => server.output().includes("ready"));
    file = join(lab.folder, "config.yaml");
    configure({ metrics: "127.0.0.1:15020" });
    agent = await lab.liveAgent(
      `--config=${file}`,
      "--workload-group=billing-vm",
      '--ports=[{"name": "http", "containerPort": 8090}]',
    );
    // Counting on served ports, and history, begin a second after the start.
    await eventually("ports are served", async () => (await map()).history > 1);
  });
  afterAll(async () => {
    for (const each of others) await each.stop("SIGKILL");
    await far?.remove();
    expect(await lab?.remove()).toEqual([]);
  });

  const configure = (settings: Record<string, string>) =>
    writeFileSync(
      file,
      Object.entries(settings)
        .map(([name, value]) => `${name}: ${value}\n`)
        .join(""),
    );
  const inside = (...command: string[]) => placed(command, { netns: lab.namespace.path });
  const play = async (scene: string) => {
    const script = join(import.meta.dirname, "faults.py");
    const place = { netns: lab.namespace.path, cgroup: lab.apps };
    expect(await output(placed(["/usr/bin/python3", script, scene], place))).toBe("done\n");
  };
  const map = async (window = 300) => (await lab.told(`/edges?window=${window}`)) as EdgesDocument;
  const scrape = (port: number) => run(inside("curl", "-sS", "-m", "5", `http://127.0.0.1:${port}/metrics`));
  const totalOf = (text: string, series: RegExp) =>
    text
      .split("\n")
      .filter((line) => series.test(line))
      .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);

  test("healthy traffic is no problem", async () => {
    await Promise.all(["healthy", "mixed"].map(play));
    const { problems, edges } = await map();
    expect(problems).toEqual([]);
    expect(edges.find(({ kind, to }) => kind === "call" && to.includes("healthy"))?.total).toMatchObject({
      ...{ opened: 20, closed: 20, sent: 20_000, received: 10_000 },
      failures: { refused: 0, timedOut: 0, unreachable: 0, reset: 0 },
    });
  });

  test("connections that this machine accepts: by port and caller, in metrics, map and log", async () => {
    await play("callers");
    const { stdout } = await scrape(15020);
    const at = (name: string) =>
      totalOf(
        stdout,
        new RegExp(`^istio_tcp_${name}_total\\{reporter="destination".*destination_workload="billing-vm"`),
      );
    expect({
      opened: at("connections_opened"),
      closed: at("connections_closed"),
      received: at("received_bytes"),
      sent: at("sent_bytes"),
    }).toEqual({ opened: 7, closed: 7, received: 7000, sent: 3500 });
    const { edges, nodes } = await map();
    const inbound = edges.filter(({ kind }) => kind === "inbound");
    expect(inbound.map(({ from, port }) => [from, port])).toEqual([["caller:127.1.0.77", 8090]]);
    // As the caller sees it: it sent what this machine received.
    expect(inbound[0]?.total).toMatchObject({
      ...{ opened: 7, closed: 7, sent: 7000, received: 3500 },
      failures: { reset: 2 },
    });
    expect(nodes.find(({ id }) => id === inbound[0]?.to)?.kind).toBe("unit");
  });

  test("resets, timeouts, silence and lost packets are each named, at the right endpoint, and nothing else", async () => {
    const nft = (...rule: string[]) => output(inside("/usr/sbin/nft", ...rule));
    await nft("add table inet loss; add chain inet loss in { type filter hook input priority 0; }");
    await nft("add rule inet loss in tcp dport 9005 meta length > 300 numgen inc mod 3 == 0 drop");
    await Promise.all(["reset", "timeout", "silent", "lossy"].map(play));
    const { problems } = await map();
    const where = (subject: string) => /-> endpoint:([\d.]+)/.exec(subject)?.[1];
    // What the caller did to this machine two times of seven is named as well.
    const outbound = problems.filter(({ subject }) => !subject.startsWith("caller:"));
    expect(outbound.map(({ rule, severity, subject }) => [rule, severity, where(subject)]).sort()).toEqual([
      ["connect-timeout", "error", "172.31.9.9"],
      ["no-answer", "warning", "127.1.1.4"],
      ["reset", "error", "127.1.1.2"],
      ["retransmits", "warning", "127.1.1.5"],
    ]);
    const text = (rule: string) => outbound.find((problem) => problem.rule === rule)?.text ?? "";
    expect(text("connect-timeout")).toStartWith("4 of 4 connections to 172.31.9.9:80 got no answer");
    expect(text("reset")).toStartWith("6 of 6 connections to 127.1.1.2:9002 were reset");
    expect(text("no-answer")).toContain("took 5000 bytes over 5 connections and answered none");
    const { stdout, code } = await lab.kmesh("topology", "--problems");
    for (const { text: words, next } of outbound) {
      expect(stdout).toContain(words);
      expect(stdout).toContain(next);
    }
    expect(code).toBe(1);
  });

  test("a full service, one endpoint alone, none at all, and what policy refuses", async () => {
    await Promise.all(["full", "lonely", "empty"].map(play));
    lab.configure({ ...mesh, outbound: "REGISTRY_ONLY" });
    await eventually("what is no service is refused", async () => {
      const { errors } = await lab.connect(1, { address: "172.31.9.10", port: 82, timeout: 1 });
      return errors.EPERM === 1;
    });
    lab.configure(mesh);
    const named = (await map()).problems.map(({ rule, severity, subject }) => [rule, severity, subject]);
    const service = (name: string) => expect.stringContaining(`service:${name}.demo`);
    for (const expected of [
      ["overloaded", "error", service("full")],
      ["alone", "warning", expect.stringContaining("endpoint:127.1.1.7:9007")],
      ["no-endpoint", "error", service("empty")],
      ["refused-by-policy", "warning", expect.anything()],
    ])
      expect(named).toContainEqual(expected);
    expect(named.filter(([rule]) => rule === "alone").length).toBe(1);
  });

  test("SIGHUP changes where metrics are, the access log, and whether connections are counted", async () => {
    const log = join(lab.folder, "new.log");
    configure({ metrics: "127.0.0.1:15021", "access-log": log, "access-log-format": "json" });
    agent.signal("SIGHUP");
    await eventually("metrics have moved", async () => (await scrape(15021)).code === 0);
    // Connection refused.
    expect((await scrape(15020)).code).toBe(7);
    await play("healthy");
    const lines = () => (existsSync(log) ? readFileSync(log, "utf8").trim().split("\n") : []);
    await eventually(
      "all are logged",
      () => lines().filter((line) => line.includes("healthy.demo")).length === 20,
    );
    const opened = async () =>
      (await map()).edges.find(({ to }) => to.startsWith("service:healthy."))?.total.opened;
    expect(await opened()).toBe(40);
    configure({ metrics: "127.0.0.1:15021", traffic: "off" });
    agent.signal("SIGHUP");
    await eventually("it is off", async () =>
      (await map()).limits.off.some((line) => line.includes("traffic is off")),
    );
    const before = lines().length;
    await play("healthy");
    expect(await opened()).toBe(40);
    configure({ metrics: "127.0.0.1:15021" });
    agent.signal("SIGHUP");
    await eventually("it is on", async () =>
      (await map()).limits.off.every((line) => !line.includes("traffic is off")),
    );
    await play("healthy");
    expect(await opened()).toBe(60);
    expect(lines().length).toBe(before);
    expect(lab.said("Reloaded metrics, access-log, access-log-format").length).toBe(1);
  });

  test("an endpoint that is left out, and connections that leave the mesh", async () => {
    await Promise.all(["sick", "outside"].map(play));
    const { problems } = await map();
    const named = (rule: string) =>
      problems
        .filter((problem) => problem.rule === rule)
        .map(({ subject, severity, value, text, next }) => ({ subject, severity, value, text, next }));
    const left = named("ejected").map(({ value, text, ...rest }) => ({
      ...rest,
      text: text.replace(/\d+ s/, "30 s"),
    }));
    expect(left).toEqual([
      {
        ...{ subject: "endpoint:127.1.3.1:9", severity: "warning", next: "kmesh status" },
        text: "127.1.3.1:9 (127.1.3.1 port 9) is left out for 30 s more, since connects to it failed in a row",
      },
    ]);
    // Five failures in a row eject; the other seven connections found the other endpoint.
    const refused = named("connect-refused").filter(({ subject }) => subject.includes("sick"));
    expect(refused.map(({ severity, value, text }) => [severity, value, text.slice(0, 46)])).toEqual([
      ["error", 5, "5 of 5 connections to 127.1.3.1:9 were refused"],
    ]);
    const [outside, ...others] = named("outside-mesh");
    expect(others).toEqual([]);
    expect(outside?.subject).toEndWith(" -> outside:api.example.com:443");
    expect([outside?.severity, outside?.value, outside?.next]).toEqual(["info", 3, "kmesh log --follow"]);
    expect(outside?.text).toContain(" made 3 connections that go to no endpoint of the mesh");
    const { stdout } = await scrape(15021);
    const passed = /^istio_tcp_connections_opened_total\{.*destination_service="api\.example\.com"/;
    expect(totalOf(stdout, passed)).toBe(3);
    const told = (await lab.kmesh("topology", "--problems")).stdout;
    expect(told).toContain("127.1.3.1:9 (127.1.3.1 port 9) is left out for ");
    expect(told).toContain(`${outside?.text} (outside-mesh)\n       next: kmesh log --follow`);
  });

  test("a hundred scrapers at once get the same answer, and those that never read cost nobody anything", async () => {
    const script = [
      "import socket, threading, urllib.request",
      "stalled = [socket.create_connection(('127.0.0.1', 15021)) for _ in range(20)]",
      "for each in stalled: each.sendall(b'GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')",
      "got = []",
      "def scrape():",
      "    for _ in range(20):",
      "        try: got.append(urllib.request.urlopen('http://127.0.0.1:15021/metrics', timeout=15).status); return",
      "        except OSError: threading.Event().wait(0.2)",
      "all = [threading.Thread(target=scrape) for _ in range(100)]",
      "for each in all: each.start()",
      "for each in all: each.join()",
      "print(len(got), set(got))",
    ].join("\n");
    const resident = () =>
      Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${agent.pid}/status`, "utf8"))?.[1]);
    const before = resident();
    expect(await output(inside("/usr/bin/python3", "-c", script))).toBe("100 {200}\n");
    // 64 connections at most, and one body between them.
    expect(resident() - before).toBeLessThan(60_000);
  });

  test("an edge has a history from its first connection on", async () => {
    await play("late");
    const { edges } = await map();
    const late = edges.filter(({ id }) => id.includes("late.demo"));
    expect(late.length).toBe(2);
    for (const { id } of late) {
      const told = (await lab.told(`/edges/history?edge=${encodeURIComponent(id)}`)) as EdgeHistory;
      expect(told.opened.reduce((sum, count) => sum + count, 0)).toBe(3);
    }
    const unknown = lab.told(`/edges/history?edge=${encodeURIComponent("unit:a -> service:b:1")}`);
    expect(await unknown.catch((error: Error) => error.message)).toStartWith("there is no edge unit:a");
  });

  test("an endpoint that is slower than its siblings, and than it was before", async () => {
    const mixed = async () => (await map(10)).edges.filter(({ id }) => id.includes("mixed.demo"));
    await eventually(
      "the first connections lie before the window",
      async () => (await mixed()).every(({ recent }) => recent.opened === 0),
      30_000,
    );
    link.signal("SIGUSR1");
    await play("mixed");
    const { problems } = await map(10);
    const slow = problems.filter(({ rule }) => rule.startsWith("slower"));
    const edge = "service:mixed.demo.svc.cluster.local:80 -> endpoint:10.9.9.2:9009";
    expect(slow.map(({ rule, subject }) => [rule, subject]).sort()).toEqual([
      ["slower-than-before", edge],
      ["slower-than-siblings", edge],
    ]);
    for (const { value, text } of slow) {
      expect(value).toBeGreaterThan(2_000);
      expect(text).toMatch(
        /^the round trip to 10\.9\.9\.2:9009 is [\d.]+ ms, (and was|to the other endpoints)/,
      );
    }
    const told = await lab.kmesh("topology", "--problems", "--since", "10s");
    for (const { text, next } of slow) {
      expect(told.stdout).toContain(text.slice(0, 40));
      expect(told.stdout).toContain(next);
    }
  });
});
