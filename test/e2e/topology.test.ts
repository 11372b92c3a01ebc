/** `kmesh topology`, `top` and `log` over one real agent and a real tunnel: each view of known connections. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { DemoMesh } from "../../src/demo/services.ts";
import { readCertificate } from "../../src/istiod/identity/certificate.ts";
import { identityStore } from "../../src/machine/identity-store.ts";
import type { LogRecord } from "../../src/telemetry/access-log/record.ts";
import type { EdgesDocument } from "../../src/telemetry/model.ts";
import { StrictPeer } from "../interop/strict-peer.ts";
import { TestMesh } from "../lab/mesh-member.ts";
import { eventually, OwnedProcess, output, placed, run } from "../lab/process.ts";
import { AgentLab, KMESH, missing, UPSTREAMS } from "./agent-lab.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why) console.warn(`skipped: topology: ${why}`);

const host = (name: string, namespace: string) => `${name}.${namespace}.svc.cluster.local`;
const at = (address: string, port: number) => ({ address, port });
const PEER = { address: "127.1.4.1", port: 8443 };

describe.skipIf(why !== undefined)("topology", () => {
  const mesh = new TestMesh();
  const services: DemoMesh["services"] = [
    {
      ...{ host: host("shop", "demo"), addresses: ["10.96.0.10"], port: 80, balance: "round-robin" },
      endpoints: [at(UPSTREAMS.a, 8080), at(UPSTREAMS.b, 8080)],
    },
    {
      ...{ host: host("files", "store"), addresses: ["10.96.0.11"], port: 80 },
      endpoints: [{ ...at(UPSTREAMS.c, 8080), workload: "files-1" }],
    },
    // One endpoint of two services, each with a name of its own for it.
    {
      ...{ host: host("archive", "store"), addresses: ["10.96.0.15"], port: 80 },
      endpoints: [{ ...at(UPSTREAMS.c, 8080), workload: "archive-1" }],
    },
    // Nothing listens there.
    { host: host("down", "demo"), addresses: ["10.96.0.12"], port: 80, endpoints: [at("127.1.0.9", 9)] },
    {
      ...{ host: host("secret", "vault"), addresses: ["10.96.0.13"], port: 80, endpoints: [PEER] },
      ...{ mtls: "istio", sans: [mesh.id("web")] },
    },
    // The same peer is somebody else for this service.
    {
      ...{ host: host("bank", "vault"), addresses: ["10.96.0.14"], port: 80, endpoints: [PEER] },
      ...{ mtls: "istio", sans: [mesh.id("bank")] },
    },
  ];
  let lab: AgentLab;
  let agent: OwnedProcess;
  const others: OwnedProcess[] = [];

  beforeAll(async () => {
    lab = await AgentLab.create({ services });
    const identity = (account: string) => {
      const { key, cert, ca } = mesh.issue(account);
      return readCertificate(key, cert, ca);
    };
    identityStore(join(lab.folder, "state")).save(identity("billing"));
    const peer = { ...identity("web"), folder: lab.folder, netns: lab.namespace.path };
    others.push(await StrictPeer.start({ ...peer, identity: identity("web"), at: PEER }));
    agent = await lab.liveAgent(
      ...["--tunnel=on", "--metrics=127.0.0.1:15020", "--namespace=shop", "--service-account=billing"],
    );
    const tunnel = new OwnedProcess({
      name: "tunnel",
      log: join(lab.folder, "tunnel.log"),
      command: [KMESH, "tunnel", ...lab.folders],
      netns: lab.namespace.path,
    });
    others.push(tunnel);
    await eventually("the tunnel accepts", () => tunnel.output().includes("accepts (pid"));
    // What was counted before the agent's first look is no news.
    await eventually("history begins", async () => (await map()).history > 1);
    await lab.connect(20);
    await lab.connect(8, { address: "10.96.0.11" });
    await lab.connect(5, { address: "10.96.0.15" });
    await lab.connect(4, { address: "10.96.0.12" });
    await lab.connect(6, { address: "10.96.0.13" });
    await lab.connect(3, { address: "10.96.0.14" });
    await eventually("the tunnel has written its status", async () => {
      const { tunnel } = await map();
      return (
        tunnel?.outbound.failures["wrong-san"] === 3 &&
        tunnel.outbound.total === 6 &&
        tunnel.outbound.open === 0
      );
    });
  });
  afterAll(async () => {
    for (const each of others) await each.stop("SIGKILL");
    expect(await lab?.remove()).toEqual([]);
    mesh.close();
  });

  const map = async () => (await lab.told("/edges?window=300")) as EdgesDocument;
  const topology = (...flags: string[]) => lab.kmesh("topology", ...flags);
  const names = ({ nodes }: EdgesDocument, kind: string) =>
    nodes.filter((node) => node.kind === kind).map(({ name }) => name);
  /** The service or endpoint of each line of a table, in its order. */
  const lines = (text: string) =>
    text
      .split("\n")
      .flatMap(
        (line) => /-> (?:[\w.]+-\d )?([\w.]+:\d+)|^\S+ +([\w.]+:\d+)/.exec(line)?.slice(1).join("") ?? [],
      );
  const inShell = (script: string) =>
    run(placed(["bash", "-c", script, KMESH, ...lab.folders], { netns: lab.namespace.path }));

  test("the terminal's map, by namespace, by failure, by time; a span that is none", async () => {
    const [all, store, failing, wide, wrong] = await Promise.all([
      topology(),
      topology("--namespace", "store"),
      topology("--failing"),
      topology("--since", "5m", "-o", "json"),
      topology("--since", "5x"),
    ]);
    expect(lines(all.stdout)).toEqual([
      ...["bank.vault:80", "127.1.4.1:8443", "down.demo:80", "127.1.0.9:9"],
      ...["archive.store:80", "127.1.0.3:8080", "files.store:80", "127.1.0.3:8080"],
      ...["secret.vault:80", "127.1.4.1:8443", "shop.demo:80", "127.1.0.1:8080", "127.1.0.2:8080"],
    ]);
    expect(all.stdout).toMatch(/-> secret\.vault:80 +ok +mTLS /);
    expect(all.stdout).toMatch(/-> shop\.demo:80 +ok +- /);
    expect(all.stdout).toMatch(/-> down\.demo:80 +failing +- .* 100% /);
    expect(all.stdout).toContain(`Tunnel as ${mesh.id("billing")}: 6 out (0 open, `);
    expect(all.stdout).toContain("Tunnel failures since it started: wrong-san out 3.");
    expect(lines(store.stdout)).toEqual([
      ...["archive.store:80", "127.1.0.3:8080", "files.store:80", "127.1.0.3:8080"],
    ]);
    expect(lines(failing.stdout)).toEqual(["bank.vault:80", "127.1.4.1:8443", "down.demo:80", "127.1.0.9:9"]);
    const document = JSON.parse(wide.stdout) as EdgesDocument & { schema: number };
    expect([document.schema, document.version]).toEqual([1, 1]);
    // The window is cut to what the agent has seen.
    expect(document.window).toBe(Math.max(10, document.history));
    expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining('"5x" is not a time span')]);
  });

  test("what the tunnel carries is marked in every format, and labelled in the metrics; who is wrong is named", async () => {
    const [dot, mermaid, problems] = await Promise.all([
      topology("-o", "dot"),
      topology("-o", "mermaid"),
      topology("--problems"),
    ]);
    expect(dot.stdout).toMatch(/^ {2}".*" -> "service:secret\..*" \[label="mTLS, .*, style=bold\];$/m);
    expect(dot.stdout).toMatch(/^ {2}".*" -> "service:shop\..*" \[label="[\d.]+\/s", color=black\];$/m);
    expect(mermaid.stdout).toMatch(/^ {2}n\d+ ==>\|"mTLS, .*"\| n\d+$/m);
    expect(mermaid.stdout.split("\n")[0]).toBe("flowchart LR");
    const { edges, tunnel } = await map();
    const carried = (to: string) =>
      edges.find((edge) => edge.kind === "call" && edge.to.includes(to))?.carried;
    expect(carried("secret")).toEqual({ by: "istio", mutualTls: true, principal: mesh.id("web") });
    expect(carried("shop")).toBeUndefined();
    expect(tunnel?.peers).toEqual({ [mesh.id("web")]: 6 });
    expect([problems.code, problems.stdout.match(/^ERROR.*/gm)]).toEqual([
      1,
      [
        "ERROR  4 of 4 connections to 127.1.0.9:9 were refused by its host: nothing listens there (connect-refused)",
        "ERROR  3 of 3 connections to bank.vault failed in the tunnel: the peer proved another identity than the service has (wrong-san) (tunnel)",
      ],
    ]);
    const text = await output(
      placed(["curl", "-sS", "http://127.0.0.1:15020/metrics"], { netns: lab.namespace.path }),
    );
    const opened = text.split("\n").filter((line) => line.startsWith("istio_tcp_connections_opened_total{"));
    const label = (line: string, name: string) => new RegExp(`[{,]${name}="([^"]*)"`).exec(line)?.[1];
    const labels = (service: string) =>
      ["source_principal", "destination_principal", "connection_security_policy"].map((name) =>
        label(opened.find((line) => label(line, "destination_service_name") === service) ?? "", name),
      );
    expect(labels("secret")).toEqual([mesh.id("billing"), mesh.id("web"), "mutual_tls"]);
    expect(labels("shop")).toEqual(["unknown", "unknown", "unknown"]);
    const workload = (service: string) =>
      label(
        opened.find((line) => label(line, "destination_service_name") === service) ?? "",
        "destination_workload",
      );
    expect([workload("files"), workload("archive")]).toEqual(["files-1", "archive-1"]);
  });

  test("top sorts by what it is asked for", async () => {
    const [rate, latency, bytes, json, wrong] = await Promise.all([
      lab.kmesh("top", "--once"),
      lab.kmesh("top", "--by", "latency"),
      lab.kmesh("top", "--by", "bytes", "--lines", "2"),
      lab.kmesh("top", "-o", "json"),
      lab.kmesh("top", "--lines", "none"),
    ]);
    expect(rate.stdout.split("\n")[0]).toMatch(/^FROM +TO +STATE +CONN\/s +LIVE +FAILED\/s/);
    // Rates are those of ten seconds, which may be over: then any order is right.
    for (const { stdout } of [rate, latency])
      expect(lines(stdout).sort()).toEqual([
        ...["archive.store:80", "bank.vault:80", "down.demo:80"],
        ...["files.store:80", "secret.vault:80", "shop.demo:80"],
      ]);
    expect(lines(bytes.stdout).length).toBe(2);
    expect(names(JSON.parse(json.stdout), "service")).toContain("shop");
    expect([wrong.code, wrong.stderr]).toEqual([
      2,
      expect.stringContaining('--lines: "none" is not a number of'),
    ]);
    await Promise.all([
      lab.connect(30, { address: "10.96.0.11" }),
      lab.connect(10, { address: "10.96.0.12" }),
    ]);
    const [busiest, worst] = await Promise.all([
      lab.kmesh("top", "--lines", "1"),
      lab.kmesh("top", "--by", "failures", "--lines", "1"),
    ]);
    expect([lines(busiest.stdout), lines(worst.stdout)]).toEqual([["files.store:80"], ["down.demo:80"]]);
  });

  test("--watch draws again what has changed, until Ctrl-C", async () => {
    const watcher = new OwnedProcess({
      name: "watch",
      log: join(lab.folder, "watch.log"),
      command: [KMESH, "topology", "--watch", "--namespace", "store", "--since", "1h", ...lab.folders],
      netns: lab.namespace.path,
    });
    others.push(watcher);
    const drawn = () => watcher.output().match(/files\.store:80 +ok +[\d.]+/g) ?? [];
    await eventually("a map is drawn", () => drawn().length > 0);
    const [first] = drawn();
    await lab.connect(200, { address: "10.96.0.11", threads: 4 });
    await eventually("a busier one is drawn", () => drawn().at(-1) !== first);
    expect(await watcher.stop("SIGINT")).toBe(0);
  });

  test("a reader that goes away does not change the exit code", async () => {
    const [map, problems] = await Promise.all([
      inShell('"$0" topology -o json --idle "$@" | head -1; echo "$PIPESTATUS"'),
      inShell('"$0" topology --problems "$@" | head -1; echo "$PIPESTATUS"'),
    ]);
    expect([map.stdout, map.stderr]).toEqual(["{\n0\n", ""]);
    expect([problems.stdout, problems.stderr]).toEqual([expect.stringMatching(/^ERROR .*\n1\n$/), ""]);
  });

  test("--from merges files and URLs of other machines", async () => {
    const page = new OwnedProcess({
      name: "page",
      log: join(lab.folder, "page.log"),
      command: [KMESH, "topology", "--open", ...lab.folders],
      netns: lab.namespace.path,
    });
    others.push(page);
    const url = await eventually("the page is served", () => /http:\S+/.exec(page.output())?.[0]);
    // What another machine would export that calls the same service.
    const own = await map();
    const file = join(lab.folder, "other.json");
    const other = { ...own, machine: { ...own.machine, host: "vm-b", addresses: ["172.31.0.2"] } };
    writeFileSync(file, JSON.stringify(other));
    const [merged, twice, broken] = await Promise.all([
      topology("--from", file, "--from", url, "-o", "json", "--idle"),
      topology("--from", url, "--from", url),
      topology("--from", file, "--from", `${file}.none`),
    ]);
    const document = JSON.parse(merged.stdout) as EdgesDocument;
    expect(
      names(document, "unit")
        .map((name) => name.replace(/^\S+/, ""))
        .sort(),
    ).toEqual([...[` on ${own.machine.host}`, " on vm-b"].sort()]);
    const opened = ({ edges }: EdgesDocument, kind: string) =>
      edges.filter((edge) => edge.kind === kind).map(({ total }) => total.opened);
    expect(opened(document, "endpoint")).toEqual(opened(own, "endpoint").map((count) => count * 2));
    expect(document.edges.filter(({ carried }) => carried).length).toBe(6);
    expect(twice.stdout).not.toContain(" on ");
    expect([broken.code, broken.stderr]).toEqual([1, expect.stringContaining("other.json.none: ")]);
    expect(await page.stop("SIGINT")).toBe(0);
  });

  test("the log is followed with filters", async () => {
    const [unit = ""] = names(await map(), "unit");
    const follow = (...flags: string[]) => lab.kmesh("log", "--follow", "--count", "2", ...flags);
    let isOver = false;
    const followers = Promise.all([
      follow("--failures"),
      follow("--service", host("files", "store")),
      follow("--unit", unit, "--service", `${host("shop", "demo")}:80`, "--output", "json"),
    ]).finally(() => {
      isOver = true;
    });
    // Nobody tells when a follower is heard: connections go on until all have their lines.
    await eventually(
      "each has two lines",
      async () => {
        const all = ["10.96.0.10", "10.96.0.11", "10.96.0.12"].map((address) => lab.connect(2, { address }));
        await Promise.all(all);
        return isOver;
      },
      30_000,
    );
    const [failures, files, shop] = (await followers).map(({ stdout }) => stdout.trim().split("\n"));
    const two = (pattern: RegExp) => Array(2).fill(expect.stringMatching(pattern));
    expect(failures).toEqual(two(/ out .*down\.demo\.svc\.cluster\.local:80 at 127\.1\.0\.9:9 refused /));
    expect(files).toEqual(
      two(/ out .*files\.store\.svc\.cluster\.local:80 at 127\.1\.0\.3:8080 \(files-1\) closed /),
    );
    const records = (shop ?? []).map((line) => JSON.parse(line) as LogRecord);
    expect(records.map((record) => [record.unit, record.service, record.end])).toEqual(
      Array(2).fill([unit, `${host("shop", "demo")}:80`, "closed"]),
    );
  });

  test("without an agent the pinned tables tell what was counted", async () => {
    const { edges } = await map();
    await agent.stop("SIGKILL");
    const [idle, json, rates, top] = await Promise.all([
      topology("--idle"),
      topology("--idle", "-o", "json"),
      topology(),
      lab.kmesh("top"),
    ]);
    expect(lines(idle.stdout).length).toBe(13);
    expect(idle.stdout).toContain("No agent runs: there are totals, and neither rates, history nor problems");
    const pinned = JSON.parse(json.stdout) as EdgesDocument;
    const totals = (all: EdgesDocument["edges"]) => all.map(({ id, total }) => [id, total.opened]);
    expect(totals(pinned.edges)).toEqual(totals(edges));
    expect(pinned.edges.filter(({ carried }) => carried?.mutualTls).length).toBe(4);
    expect([rates.stdout, pinned.window]).toEqual([idle.stdout, 0]);
    expect(rates.stdout).not.toContain("No problems.");
    expect(top).toMatchObject({
      code: 0,
      stdout: expect.stringContaining("kmesh topology shows the totals"),
    });
  });
});
