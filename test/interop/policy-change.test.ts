/**
 * Policies of every kind that change under load, on a real istiod in dual-engine mode: each connection gets the verdict of the
 * set before or of the one after, whether it comes in plaintext or through the tunnel. Then istiod and the agent go.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type AgentStatus, adminSocket } from "../../src/admin/status.ts";
import type { KubeObject } from "../control-plane/kube.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, OwnedProcess, output } from "../lab/process.ts";
import { KMESH, MeshLab, missing } from "./mesh-lab.ts";

setDefaultTimeout(120_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

const VM = "10.77.0.1";
const [A, B] = [8081, 8082];
const SCRIPT = join(import.meta.dirname, "../inbound/peers.py");
/** Two in plaintext, two with an identity. */
const CALLERS = { first: "10.77.0.2", second: "10.77.0.3", vm: "10.77.0.4", other: "10.77.0.5" } as const;
type Caller = keyof typeof CALLERS;
/** Who gets in, at port A and at port B. */
type Verdicts = Record<Caller, string>;

const [IN, OUT, ONLY_A, ONLY_B] = ["in in", "out out", "in out", "out in"] as const;
const all = (verdict: string): Verdicts => ({ first: verdict, second: verdict, vm: verdict, other: verdict });

const policy = (
  spec: Record<string, unknown>,
  { name = "p", namespace = "shop", annotations = {} as Record<string, string> } = {},
): KubeObject => ({
  apiVersion: "security.istio.io/v1",
  kind: "AuthorizationPolicy",
  metadata: { name, namespace, annotations },
  spec,
});
const selected = { selector: { matchLabels: { app: "vm" } } };
const from = (source: Record<string, string[]>) => [{ source }];
const to = (operation: Record<string, string[]>) => [{ operation }];
const peers = (mtls: string, ports?: Record<number, string>): KubeObject => ({
  apiVersion: "security.istio.io/v1",
  kind: "PeerAuthentication",
  metadata: { name: "vm", namespace: "shop" },
  spec: {
    ...selected,
    mtls: { mode: mtls },
    ...(ports
      ? { portLevelMtls: Object.fromEntries(Object.entries(ports).map(([port, mode]) => [port, { mode }])) }
      : {}),
  },
});

describe.skipIf(why !== undefined)("policies that change under load", () => {
  let lab: MeshLab;
  let far: NetworkNamespace;
  let callers: OwnedProcess;
  let flags: string[] = [];
  const others: OwnedProcess[] = [];

  /** `CALLER PORT VERDICT` of each attempt so far. */
  const attempts = () => callers.output().split("\n").slice(0, -1);
  /** The last verdicts of attempts after the first `since`; undefined while one is missing. */
  const latest = (since: number): Verdicts | undefined => {
    const seen = new Map(
      attempts()
        .slice(since)
        .map((line) => {
          const [caller, port, verdict] = line.split(" ");
          return [`${caller} ${port}`, verdict] as const;
        }),
    );
    const of = (caller: Caller) => [A, B].map((port) => seen.get(`${caller} ${port}`));
    const rows = (Object.keys(CALLERS) as Caller[]).map((caller) => [caller, of(caller)] as const);
    if (rows.some(([, verdicts]) => verdicts.includes(undefined))) return undefined;
    return Object.fromEntries(rows.map(([caller, verdicts]) => [caller, verdicts.join(" ")])) as Verdicts;
  };
  /** Every attempt after the first `since` had the verdict of `before` or of `after`, and never went back. */
  const check = (what: string, since: number, before: Verdicts, after: Verdicts) => {
    const changed = new Set<string>();
    for (const line of attempts().slice(since)) {
      const [caller = "", port = "", verdict = ""] = line.split(" ");
      const at = Number(port) === A ? 0 : 1;
      const [old, now] = [before, after].map((each) => each[caller as Caller].split(" ")[at]);
      const cell = `${caller} ${port}`;
      if (verdict === now) changed.add(cell);
      else if (verdict !== old || changed.has(cell) || old === now)
        throw new Error(`${what}: ${line}, where ${old} became ${now}${changed.has(cell) ? " before" : ""}`);
    }
  };
  /** A whole round from now on. */
  const round = async (): Promise<Verdicts> => {
    const since = attempts().length;
    return eventually("a whole round", () => latest(since));
  };
  let current = all(IN);
  const step = async (what: string, change: () => Promise<unknown>, wanted: Verdicts) => {
    const since = attempts().length;
    await change();
    await eventually(what, () => {
      const now = latest(since);
      if (JSON.stringify(now) === JSON.stringify(wanted)) return true;
      throw new Error(JSON.stringify(now));
    });
    check(what, since, current, wanted);
    current = wanted;
    expect(await round()).toEqual(wanted);
  };

  beforeAll(async () => {
    lab = await MeshLab.create({ namespaces: ["shop", "other"] });
    far = await NetworkNamespace.create("far");
    await lab.namespace.connect(
      far,
      [`${VM}/24`],
      Object.values(CALLERS).map((address) => `${address}/24`),
    );
    const { kube } = lab.plane;
    await kube.apply(
      {
        apiVersion: "networking.istio.io/v1",
        kind: "WorkloadEntry",
        metadata: { name: "vm", namespace: "shop" },
        spec: { address: VM, serviceAccount: "vm", labels: { app: "vm" } },
      },
      {
        apiVersion: "networking.istio.io/v1",
        kind: "ServiceEntry",
        metadata: { name: "vm", namespace: "shop" },
        spec: {
          ...{ hosts: ["vm.shop.internal"], addresses: ["10.97.9.1"], location: "MESH_INTERNAL" },
          ...{ resolution: "STATIC", workloadSelector: { labels: { app: "vm" } } },
          ports: [
            { number: A, name: "tcp-a", protocol: "TCP" },
            { number: B, name: "tcp-b", protocol: "TCP" },
          ],
        },
      },
    );
    const ca = join(lab.folder, "root-cert.pem");
    writeFileSync(ca, await lab.plane.rootCertificate());
    const istiod = `localhost:${lab.plane.ports.secureGrpc}`;
    const files: string[] = [];
    for (const [caller, namespace] of [
      ["vm", "shop"],
      ["other", "other"],
    ] as const) {
      const token = join(lab.folder, `${caller}-token`);
      writeFileSync(token, await kube.serviceAccountToken(namespace, "vm"), { mode: 0o600 });
      const script = join(import.meta.dirname, "certificate.ts");
      const pem = await output([process.execPath, script, istiod, ca, token, namespace, "vm"], {
        netns: lab.namespace.path,
      });
      writeFileSync(join(lab.folder, `${caller}.pem`), pem, { mode: 0o600 });
      files.push(`${caller}=${CALLERS[caller]}=${join(lab.folder, `${caller}.pem`)}`);
    }
    const begin = async (name: string, ready: string, command: string[], netns: string) => {
      const begun = new OwnedProcess({ name, log: join(lab.folder, `${name}.log`), command, netns });
      others.push(begun);
      await eventually(`${name} is ready`, () => begun.output().includes(ready));
      return begun;
    };
    const upstream = join(import.meta.dirname, "upstream.ts");
    const apps = [A, B].map((port) => `app=${VM}:${port}`);
    await begin("app", "ready", [process.execPath, upstream, ...apps], lab.namespace.path);
    flags = [
      ...["--mode=dual-engine", `--ip=${VM}`, `--istiod=${istiod}`, `--ca=${ca}`, "--tunnel=on"],
      `--token=${join(lab.folder, "vm-token")}`,
    ];
    await lab.startedAgent(...flags);
    await begin("tunnel", "accepts (pid", [KMESH, "tunnel", ...lab.folders], lab.namespace.path);
    const plaintext = [`first=${CALLERS.first}`, `second=${CALLERS.second}`];
    const command = ["python3", SCRIPT, "callers", VM, `${A},${B}`, ca, ...plaintext, ...files];
    callers = await begin("callers", "ready", command, far.path);
    await eventually("everybody gets in, the identities through the tunnel", () => {
      const now = latest(Math.max(0, attempts().length - 16));
      if (JSON.stringify(now) === JSON.stringify(current)) return true;
      throw new Error(JSON.stringify(now));
    });
  }, 600_000);
  afterAll(async () => {
    for (const each of others.reverse()) await each.stop("SIGKILL");
    await lab?.remove();
    await far?.remove();
  }, 60_000);

  test("each kind of policy and each mode: the verdict is that of the set before or of the one after", async () => {
    const { kube } = lab.plane;
    const apply = (spec: Record<string, unknown>, more?: Parameters<typeof policy>[1]) => () =>
      kube.apply(policy(spec, more));
    const block = `${CALLERS.first}/32`;
    await step(
      "DENY of a block, by selector",
      apply({ ...selected, action: "DENY", rules: [{ from: from({ ipBlocks: [block] }) }] }),
      { ...all(IN), first: OUT },
    );
    await step(
      "DENY of all but a block",
      apply({ ...selected, action: "DENY", rules: [{ from: from({ notIpBlocks: [block] }) }] }),
      { ...all(OUT), first: IN },
    );
    await step(
      "DENY of a port, for the namespace",
      apply({ action: "DENY", rules: [{ to: to({ ports: [`${A}`] }) }] }),
      all(ONLY_B),
    );
    await step(
      "ALLOW of a namespace",
      apply({ action: "ALLOW", rules: [{ from: from({ namespaces: ["shop"] }) }] }),
      { ...all(OUT), vm: IN },
    );
    await step(
      "ALLOW of a principal at all but a port",
      apply({
        ...selected,
        action: "ALLOW",
        rules: [
          {
            from: from({ principals: ["cluster.local/ns/other/sa/vm"] }),
            to: to({ notPorts: [`${B}`] }),
          },
        ],
      }),
      { ...all(OUT), other: ONLY_A },
    );
    await step(
      "ALLOW of all but a service account",
      apply({ action: "ALLOW", rules: [{ from: from({ notServiceAccounts: ["shop/vm"] }) }] }),
      { ...all(IN), vm: OUT },
    );
    const global = { name: "global", namespace: "istio-system" };
    const elsewhere = { action: "DENY", rules: [{ from: from({ notNamespaces: ["other"] }) }] };
    await step("a global DENY of all but a namespace, beside it", apply(elsewhere, global), {
      ...all(OUT),
      other: IN,
    });
    await step(
      "the same of dry run",
      apply(elsewhere, { ...global, annotations: { "istio.io/dry-run": "true" } }),
      { ...all(IN), vm: OUT },
    );
    await step(
      "layer 7 in a DENY: it denies whom it may have meant",
      apply({ action: "DENY", rules: [{ to: to({ methods: ["PUT"] }) }] }),
      all(OUT),
    );
    await step("nothing", () => kube.remove(policy({})), all(IN));
    await step("STRICT", () => kube.apply(peers("STRICT")), { ...all(IN), first: OUT, second: OUT });
    await step("STRICT but for a port", () => kube.apply(peers("STRICT", { [A]: "PERMISSIVE" })), {
      ...all(IN),
      ...{ first: ONLY_A, second: ONLY_A },
    });
    await step("PERMISSIVE but for that port", () => kube.apply(peers("PERMISSIVE", { [A]: "STRICT" })), {
      ...all(IN),
      ...{ first: ONLY_B, second: ONLY_B },
    });
    await step("DISABLE", () => kube.apply(peers("DISABLE")), all(IN));
    await step("STRICT again", () => kube.apply(peers("STRICT")), { ...all(IN), first: OUT, second: OUT });
    await step(
      "and an ALLOW of a namespace",
      apply({ ...selected, action: "ALLOW", rules: [{ from: from({ namespaces: ["other"] }) }] }),
      { ...all(OUT), other: IN },
    );
  });

  test("istiod is killed, then the agent: the verdicts stay; both come back and write nothing", async () => {
    const since = attempts().length;
    await lab.plane.stopIstiod("SIGKILL");
    expect(await round()).toEqual(current);
    process.kill(lab.agent.pid, "SIGKILL");
    await lab.agent.exited;
    expect(await round()).toEqual(current);
    await lab.plane.startIstiod();
    await lab.startedAgent(...flags);
    expect(await round()).toEqual(current);
    check("istiod and the agent went", since, current, current);
    const unix = adminSocket(join(lab.folder, "run"));
    const told = await fetch("http://localhost/status", { unix, proxy: "" });
    const { agent } = (await told.json()) as { agent: AgentStatus };
    expect(agent.inbound).toMatchObject({ applied: 0, attached: true });
    expect(agent.tables.writes).toBe(0);
  });
});
