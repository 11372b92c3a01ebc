/** AuthorizationPolicies and PeerAuthentications of a real istiod, enforced on connections to a VM's services. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import type { InboundView } from "../../src/inbound/view.ts";
import type { KubeObject } from "../control-plane/kube.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, OwnedProcess, output } from "../lab/process.ts";
import { MeshLab, missing } from "./mesh-lab.ts";
import { serviceEntry } from "./objects.ts";

setDefaultTimeout(60_000);
const why = missing();
if (why !== undefined) console.warn(`interop tests are skipped: ${why}`);

const VM = "10.76.0.1";
const PEER = { first: "10.76.0.2", second: "10.76.0.3" };
const TCP = 8081;
const HTTP = 8082;
const SCRIPT = join(import.meta.dirname, "../inbound/peers.py");

const security = (kind: string, name: string, spec: Record<string, unknown>): KubeObject => ({
  apiVersion: "security.istio.io/v1",
  kind,
  metadata: { name, namespace: "shop" },
  spec,
});

describe.skipIf(why !== undefined)("a VM's inbound policies", () => {
  let lab: MeshLab;
  let far: NetworkNamespace;
  let app: OwnedProcess;

  const ask = async (port: number, source: string, netns = far): Promise<string> => {
    const answer = await output(["python3", SCRIPT, "ask", source, VM, String(port)], { netns: netns.path });
    return answer.trim().split(" ")[0] ?? "";
  };
  /** What each peer gets at each port. */
  const answers = async () => ({
    first: [await ask(TCP, PEER.first), await ask(HTTP, PEER.first)],
    second: [await ask(TCP, PEER.second), await ask(HTTP, PEER.second)],
  });
  const OPEN = ["app", "app"];
  const SHUT = ["ECONNREFUSED", "ECONNREFUSED"];
  const become = (what: string, wanted: Awaited<ReturnType<typeof answers>>) =>
    eventually(what, async () => {
      const now = JSON.stringify(await answers());
      if (now === JSON.stringify(wanted)) return true;
      throw new Error(now);
    });

  beforeAll(async () => {
    lab = await MeshLab.create();
    far = await NetworkNamespace.create("far");
    await lab.namespace.connect(far, [`${VM}/24`], [`${PEER.first}/24`, `${PEER.second}/24`]);
    await lab.plane.kube.apply(
      serviceEntry("vm", {
        addresses: ["10.97.9.1"],
        ports: [
          { number: TCP, name: "tcp-app", protocol: "TCP" },
          { number: HTTP, name: "http-app", protocol: "HTTP" },
        ],
        endpoints: [{ address: VM, labels: { app: "vm" } }],
      }),
    );
    app = new OwnedProcess({
      name: "app",
      log: join(lab.folder, "app.log"),
      command: ["python3", SCRIPT, "serve", String(TCP), String(HTTP)],
      netns: lab.namespace.path,
    });
    await eventually("the app listens", () => app.output().startsWith("ready"));
    await lab.startedAgent(`--ip=${VM}`);
  }, 600_000);

  afterAll(async () => {
    await app?.stop();
    await lab?.remove();
    await far?.remove();
  }, 60_000);

  test("a DENY of a block refuses a peer at TCP and HTTP ports, until it goes", async () => {
    await become("everybody gets in", { first: OPEN, second: OPEN });
    const deny = security("AuthorizationPolicy", "no", {
      action: "DENY",
      rules: [{ from: [{ source: { ipBlocks: [`${PEER.first}/32`] } }] }],
    });
    await lab.plane.kube.apply(deny);
    await become("the first peer is refused", { first: SHUT, second: OPEN });
    const { stdout } = await lab.kmesh("explain", `--from=${PEER.first}`, `--to=${TCP}`);
    expect(stdout).toContain("policy shop/no denies it (rule[0])");
    await lab.plane.kube.remove(deny);
    await become("everybody gets in again", { first: OPEN, second: OPEN });
  });

  test("ALLOW by block and port; by namespace, which plaintext has none of; layer 7 allows nothing and is listed", async () => {
    const allow = (rules: unknown[]) => security("AuthorizationPolicy", "yes", { action: "ALLOW", rules });
    const from = { from: [{ source: { ipBlocks: [`${PEER.second}/32`] } }] };
    await lab.plane.kube.apply(allow([{ ...from, to: [{ operation: { ports: [String(TCP)] } }] }]));
    await become("one peer at one port", { first: SHUT, second: ["app", "ECONNREFUSED"] });
    await lab.plane.kube.apply(allow([{ from: [{ source: { namespaces: ["shop"] } }] }]));
    await become("nobody in plaintext", { first: SHUT, second: SHUT });
    const { stdout } = await lab.kmesh("explain", "--from=cluster.local/ns/shop/sa/a", `--to=${HTTP}`);
    expect(stdout).toContain("policy shop/yes allows it");
    await lab.plane.kube.apply(allow([from, { to: [{ operation: { paths: ["/x"] } }] }]));
    await become("one peer at both ports", { first: SHUT, second: OPEN });
    expect((await lab.kmesh("status", "--all")).stdout).toContain("policy shop/yes: ");
    await lab.plane.kube.remove(allow([]));
    await become("everybody gets in again", { first: OPEN, second: OPEN });
  });

  test("STRICT refuses plaintext, also after kill -9; the machine itself passes", async () => {
    await lab.plane.kube.apply(security("PeerAuthentication", "default", { mtls: { mode: "STRICT" } }));
    await become("nobody in plaintext", { first: SHUT, second: SHUT });
    const view = async () => (await lab.status()) as unknown as { inbound: InboundView };
    const { inbound } = await view();
    expect(inbound.ports).toEqual([
      { port: TCP, mtls: "strict" },
      { port: HTTP, mtls: "strict" },
    ]);
    expect(inbound).toMatchObject({ enforced: true, tunnel: false });
    expect(inbound.refusals.map(({ by }) => by)).toContain("PeerAuthentication STRICT");
    process.kill(lab.agent.pid, "SIGKILL");
    await lab.agent.exited;
    expect(await ask(TCP, PEER.first)).toBe("ECONNREFUSED");
    expect(await ask(TCP, VM, lab.namespace)).toBe("app");
  });
});
