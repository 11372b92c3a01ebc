/** Metrics, access log and map of a real agent, read by curl, Prometheus and the commands; over kills and restarts. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { EdgesDocument } from "../../src/telemetry/model.ts";
import { eventually, OwnedProcess, output, placed, run } from "../lab/process.ts";
import { prometheus } from "../lab/prometheus.ts";
import { AgentLab, missing, shop } from "./agent-lab.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why) console.warn(`skipped: telemetry: ${why}`);

const FLAGS = [
  ...["--metrics=127.0.0.1:15020", "--namespace=vms", "--workload-group=billing-vm"],
  '--ports=[{"name": "http", "containerPort": 8090}]',
];

describe.skipIf(why !== undefined)("telemetry", () => {
  let lab: AgentLab;
  let agent: OwnedProcess;
  beforeAll(async () => {
    lab = await AgentLab.create(shop({ v1: 1, v2: 0 }));
    agent = await lab.liveAgent(
      ...FLAGS,
      `--access-log=${lab.folder}/access.log`,
      "--access-log-format=json",
    );
  });
  afterAll(async () => {
    expect(await lab?.remove()).toEqual([]);
  });

  const inside = (...command: string[]) => output(placed(command, { netns: lab.namespace.path }));
  const scrape = (...more: string[]) => inside("curl", "-sS", ...more, "http://127.0.0.1:15020/metrics");
  const totalOf = (text: string, series: RegExp): number =>
    text
      .split("\n")
      .filter((line) => series.test(line))
      .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
  const OPENED = /^istio_tcp_connections_opened_total\{reporter="source"/;
  const CLOSED = /^istio_tcp_connections_closed_total\{reporter="source"/;

  test("both formats, and all four series from the first connection on", async () => {
    await lab.connect(12);
    const plain = await scrape();
    expect(totalOf(plain, OPENED)).toBe(12);
    expect(totalOf(plain, CLOSED)).toBe(12);
    for (const family of ["connections_opened", "connections_closed", "received_bytes", "sent_bytes"])
      expect(plain).toMatch(new RegExp(`^istio_tcp_${family}_total\\{`, "m"));
    const [line = ""] = plain.split("\n").filter((each) => OPENED.test(each));
    expect([...line.matchAll(/(\w+)="([^"]*)"/g)].map(([, name, value]) => `${name}=${value}`)).toEqual([
      "reporter=source",
      "source_workload=billing-vm",
      "source_canonical_service=billing-vm",
      "source_canonical_revision=latest",
      "source_workload_namespace=vms",
      "source_principal=unknown",
      "source_app=unknown",
      "source_version=unknown",
      "source_cluster=Kubernetes",
      "destination_workload=unknown",
      "destination_workload_namespace=unknown",
      "destination_principal=unknown",
      "destination_app=unknown",
      "destination_version=unknown",
      "destination_service=shop.demo.svc.cluster.local",
      "destination_canonical_service=unknown",
      "destination_canonical_revision=latest",
      "destination_service_name=shop",
      "destination_service_namespace=unknown",
      "destination_cluster=unknown",
      "request_protocol=tcp",
      "response_flags=-",
      "connection_security_policy=unknown",
    ]);
    const open = await scrape("-H", "Accept: application/openmetrics-text;version=1.0.0");
    expect(open).toMatch(/# TYPE istio_tcp_connections_opened counter\n/);
    expect(open.endsWith("# EOF\n")).toBe(true);
    expect(await inside("curl", "-sS", "http://127.0.0.1:15020/healthz")).toBe("ok\n");
    expect(await inside("curl", "-sS", "http://127.0.0.1:15020/readyz")).toBe("ok\n");
  });

  /** Seven connections to this machine's port 8090: 7,000 bytes in, 3,500 out. */
  const callIn = () => {
    const script = join(import.meta.dirname, "faults.py");
    const place = { netns: lab.namespace.path, cgroup: lab.apps };
    return output(placed(["/usr/bin/python3", script, "callers"], place));
  };

  test("promtool and a real Prometheus take it; the queries of Kiali and of Istio's dashboards give the graph", async () => {
    // Counting on served ports begins a second after the start.
    await eventually(
      "ports are served",
      async () => ((await lab.told("/edges")) as EdgesDocument).history > 1,
    );
    await callIn();
    const { server, promtool } = await prometheus();
    const text = await scrape();
    const file = join(lab.folder, "metrics.txt");
    writeFileSync(file, text);
    const check = await run(["/bin/sh", "-c", `${promtool} check metrics < ${file}`]);
    expect([check.code, check.stderr]).toEqual([0, ""]);
    const config = join(lab.folder, "prometheus.yml");
    writeFileSync(
      config,
      [
        "global: {scrape_interval: 1s}",
        "scrape_configs:",
        "  - {job_name: kmesh, static_configs: [{targets: ['127.0.0.1:15020']}]}",
      ].join("\n"),
    );
    const scraper = new OwnedProcess({
      name: "prometheus",
      log: join(lab.folder, "prometheus.log"),
      command: [
        server,
        `--config.file=${config}`,
        `--storage.tsdb.path=${lab.folder}/tsdb`,
        "--web.listen-address=127.0.0.1:9090",
      ],
      netns: lab.namespace.path,
    });
    try {
      const query = async (text: string) => {
        const answer = await inside(
          ...["curl", "-sS", "--get", "--data-urlencode", `query=${text}`],
          "http://127.0.0.1:9090/api/v1/query",
        );
        return JSON.parse(answer).data?.result as {
          metric: Record<string, string>;
          value: [number, string];
        }[];
      };
      await eventually("Prometheus has scraped", async () => (await query("up == 1")).length === 1, 20_000);
      await lab.connect(30);
      await callIn();
      const by =
        "app,source_cluster,source_workload_namespace,source_workload,source_canonical_service,source_canonical_revision," +
        "destination_cluster,destination_service_namespace,destination_service,destination_service_name," +
        "destination_workload_namespace,destination_workload,destination_canonical_service,destination_canonical_revision,response_flags";
      // Kiali's "sent" is what our app sent: the request.
      const graph = (which: string) =>
        query(`sum(rate(istio_tcp_received_bytes_total{app!="ztunnel",${which}}[30s])) by (${by}) > 0`);
      const edges = async (which: string) =>
        (await graph(which)).map(({ metric }) => [
          ...[metric.source_workload_namespace, metric.source_workload],
          ...[metric.destination_service, metric.destination_workload_namespace, metric.destination_workload],
          metric.response_flags,
        ]);
      const called = ["vms", "billing-vm", "shop.demo.svc.cluster.local", "unknown", "unknown", "-"];
      await eventually(
        "the graph of this machine's namespace has an edge",
        async () => (await edges('reporter="source",source_workload_namespace="vms"')).length === 1,
        20_000,
      );
      expect(await edges('reporter="source",source_workload_namespace="vms"')).toEqual([called]);
      // The graph of the namespace that it calls, whose workloads istiod does not name.
      expect(
        await edges(
          'reporter="source",source_workload_namespace!="demo",destination_workload_namespace="unknown",' +
            'destination_workload="unknown",destination_service=~"^.+\\\\.demo\\\\..+$"',
        ),
      ).toEqual([called]);
      const inbound = async () => edges('reporter="destination",destination_workload_namespace="vms"');
      await eventually("the graph has who calls in", async () => (await inbound()).length === 1, 20_000);
      expect(await inbound()).toEqual([["unknown", "unknown", "unknown", "vms", "billing-vm", "-"]]);
      // Kiali leaves a series out in which one of these is missing.
      for (const { metric } of await query("istio_tcp_received_bytes_total"))
        for (const name of by.split(",").filter((each) => each !== "app"))
          expect([name, metric[name] ?? ""]).not.toEqual([name, ""]);

      // Istio's dashboards: mesh, service and workload, as far as they are about TCP.
      const only = async (text: string) => {
        const found = await query(text);
        expect([text, found.length]).toEqual([text, 1]);
        expect(Number(found[0]?.value[1])).toBeGreaterThan(0);
        return found[0]?.metric;
      };
      const shopLabels = 'destination_service=~"shop.demo.svc.cluster.local"';
      expect(
        await only(
          'label_join(sum(rate(istio_tcp_received_bytes_total{reporter=~"source|waypoint"}[5m])) by (destination_workload,' +
            'destination_workload_namespace,destination_service),"destination_workload_var",".","destination_workload",' +
            '"destination_workload_namespace")',
        ),
      ).toMatchObject({ destination_workload_var: "unknown.unknown" });
      expect(
        await only(`sum(istio_tcp_sent_bytes_total{reporter=~"source",${shopLabels}}) by (source_workload)`),
      ).toEqual({ source_workload: "billing-vm" });
      for (const series of ["received", "sent"]) {
        await only(
          `round(sum(rate(istio_tcp_${series}_bytes_total{reporter=~"source",connection_security_policy!="mutual_tls",` +
            `${shopLabels},source_workload=~"billing-vm",source_workload_namespace=~"vms"}[30s])) by (source_workload), 0.001)`,
        );
        await only(
          `sum(rate(istio_tcp_${series}_bytes_total{reporter="destination",connection_security_policy="none",` +
            'destination_workload_namespace=~"vms",destination_workload=~"billing-vm"}[30s])) by (source_workload)',
        );
        await only(
          `sum(rate(istio_tcp_${series}_bytes_total{reporter="source",source_workload_namespace=~"vms",` +
            'source_workload=~"billing-vm"}[30s])) by (destination_service)',
        );
      }
      const [opened] = await query('sum(istio_tcp_connections_opened_total{reporter="source"})');
      expect(Number(opened?.value[1])).toBe(42);
    } finally {
      await scraper.stop("SIGKILL");
    }
  });

  test("counters go on over SIGKILL, and nothing is counted twice", async () => {
    const before = totalOf(await scrape(), OPENED);
    await agent.stop("SIGKILL");
    await lab.connect(25);
    agent = await lab.liveAgent(
      ...FLAGS,
      `--access-log=${lab.folder}/access.log`,
      "--access-log-format=json",
    );
    const after = await scrape();
    expect(totalOf(after, OPENED)).toBe(before + 25);
    expect(totalOf(after, CLOSED)).toBe(before + 25);
  });

  test("the map, and what it says of a service whose endpoint is gone", async () => {
    const document = await eventually("the map has traffic", async () => {
      await lab.connect(5);
      const found = await lab.json<EdgesDocument>("topology", "--since", "10s");
      return found.edges.some(({ kind }) => kind === "endpoint") && found;
    });
    const call = document.edges.find(({ kind }) => kind === "call");
    expect(call?.to).toBe("service:shop.demo.svc.cluster.local:80");
    expect(call?.total.opened).toBe(
      document.edges
        .filter(({ kind }) => kind === "endpoint")
        .reduce((sum, { total }) => sum + total.opened, 0),
    );
    expect(document.nodes.filter(({ kind }) => kind === "endpoint").map(({ id }) => id)).toEqual([
      "endpoint:127.1.0.1:8080",
      "endpoint:127.1.0.2:8080",
    ]);
    const text = (await lab.kmesh("topology")).stdout;
    expect(text).toContain("shop.demo:80");
    expect((await lab.kmesh("topology", "-o", "dot")).stdout).toMatch(/^digraph kmesh \{\n/);
    expect((await lab.kmesh("topology", "-o", "mermaid")).stdout).toMatch(/^flowchart LR\n/);
    const mesh = shop({ v1: 1, v2: 0 });
    for (const service of mesh.services) for (const each of service.endpoints) each.port = 9;
    lab.configure(mesh);
    await eventually("connections are refused", async () => (await lab.connect(1)).made === 0, 20_000);
    await lab.connect(8);
    const problems = await lab.kmesh("topology", "--problems", "--since", "10s");
    expect(problems.stdout).toMatch(
      /ERROR {2}\d+ of \d+ connections to 127\.1\.0\.\d:9 were refused by its host/,
    );
    expect(problems.code).toBe(1);
  });

  test("the access log has a line for each, and kmesh log shows them live", async () => {
    const count = () =>
      readFileSync(join(lab.folder, "access.log"), "utf8")
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line) as { direction: string; end: string })
        .filter(({ direction }) => direction === "out");
    const following = lab.kmesh("log", "--count", "3", "--failures");
    await eventually("the log is followed", async () => {
      await lab.connect(1);
      return count().at(-1)?.end === "refused";
    });
    await lab.connect(3);
    const { stdout } = await following;
    expect(stdout.trim().split("\n").length).toBe(3);
    expect(stdout).toMatch(/ out .*shop\.demo\.svc\.cluster\.local:80 at 127\.1\.0\.\d:9 refused /);
    const opened = totalOf(await scrape(), OPENED);
    // But those that were made while no agent ran, which the kernel kept for the next one as far as it had room.
    await eventually("all lines are there", () => count().length === opened);
  });
});
