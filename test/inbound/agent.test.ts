/** The real single file enforces what virtualInbound says, over its own death, and says who was refused. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { InboundExplanation } from "../../src/inbound/explain.ts";
import type { InboundView } from "../../src/inbound/view.ts";
import type { EdgesDocument } from "../../src/telemetry/model.ts";
import { AgentLab, missing, shop } from "../e2e/agent-lab.ts";
import { NetworkNamespace } from "../lab/namespace.ts";
import { eventually, OwnedProcess, output } from "../lab/process.ts";

const why = missing();
if (why) console.warn(`skipped: inbound policies of an agent: ${why}`);

setDefaultTimeout(90_000);

const VM = "10.78.0.1";
const PEER = "10.78.0.2";
const PORTS = { denied: 8081, strict: 8443, open: 9000 } as const;
const SCRIPT = join(import.meta.dir, "peers.py");

describe.skipIf(why !== undefined)("an agent's inbound policies", () => {
  let lab: AgentLab;
  let far: NetworkNamespace;
  let app: OwnedProcess;
  let agent: OwnedProcess;

  const mesh = (denied: string[]) => ({
    ...shop({ v1: 50, v2: 50 }),
    inbound: [
      { port: PORTS.denied, mtls: "disable" as const, deny: denied },
      { port: PORTS.strict, mtls: "strict" as const },
      { port: PORTS.open, mtls: "permissive" as const },
    ],
  });
  const ask = async (port: number, netns = far, address: string = VM): Promise<string> => {
    const answer = await output(["python3", SCRIPT, "ask", "", address, String(port)], { netns: netns.path });
    return answer.trim().split(" ")[0] ?? "";
  };
  const answers = async () => ({
    denied: await ask(PORTS.denied),
    strict: await ask(PORTS.strict),
    open: await ask(PORTS.open),
    local: await ask(PORTS.strict, lab.namespace),
    loopback: await ask(PORTS.denied, lab.namespace, "127.0.0.1"),
  });
  const CLOSED = {
    denied: "ECONNREFUSED",
    strict: "ECONNREFUSED",
    open: "app",
    local: "app",
    loopback: "app",
  };

  beforeAll(async () => {
    lab = await AgentLab.create(mesh([`${PEER}/32`]));
    far = await NetworkNamespace.create("far");
    await lab.namespace.connect(far, [`${VM}/24`], [`${PEER}/24`]);
    app = new OwnedProcess({
      name: "app",
      log: join(lab.folder, "app.log"),
      command: ["python3", SCRIPT, "serve", ...Object.values(PORTS).map(String)],
      netns: lab.namespace.path,
    });
    await eventually("the app listens", () => app.output().startsWith("ready"));
    agent = await lab.liveAgent();
  }, 60_000);
  afterAll(async () => {
    await app?.stop();
    const left = await lab?.remove();
    await far?.remove();
    expect(left ?? []).toEqual([]);
  });

  test("DENY of a source and STRICT refuse from outside; this machine itself passes", async () => {
    expect(await answers()).toEqual(CLOSED);
  });

  test("after kill -9 of the agent the same; explain and status say it without an agent", async () => {
    process.kill(agent.pid, "SIGKILL");
    await agent.exited;
    expect(await answers()).toEqual(CLOSED);
    const status = await lab.json<{ inbound: InboundView }>("status");
    expect(status.inbound).toMatchObject({ enforced: true, tunnel: false });
    expect(status.inbound.refusals.map(({ by }) => by).sort()).toEqual([
      "PeerAuthentication STRICT",
      "demo/deny-8081",
    ]);
    expect(status.inbound.recent[0]).toMatchObject({ source: PEER, destination: VM });
    const explained = await lab.json<{ inbound: InboundExplanation }>(
      "explain",
      `--from=${PEER}`,
      `--to=${PORTS.denied}`,
    );
    expect(explained.inbound).toMatchObject({
      governed: true,
      enforced: true,
      decision: { allowed: false, reason: "denied", policy: "demo/deny-8081", rule: "rule[0]" },
    });
    const { stdout } = await lab.kmesh("explain", "--from=cluster.local/ns/a/sa/b", `--to=${PORTS.strict}`);
    expect(stdout).toContain("is let in");
  });

  test("the next agent writes nothing for what did not change; a policy that goes lets the peer in", async () => {
    const log = join(lab.folder, "access.log");
    agent = await lab.liveAgent(`--access-log=${log}`);
    expect((await lab.toldStatus()).inbound).toMatchObject({ applied: 0, attached: true });
    expect(await answers()).toEqual(CLOSED);
    // Refusals from before this agent are not logged.
    const line = new RegExp(
      ` in - from ${PEER} on port ${PORTS.denied} refused-on-purpose:demo/deny-8081 `,
      "g",
    );
    await eventually("the refusal is logged", () => existsSync(log) && line.test(readFileSync(log, "utf8")));
    expect(readFileSync(log, "utf8").match(line)).toHaveLength(1);
    const { problems } = await lab.json<EdgesDocument>("topology");
    expect(problems.find(({ text }) => text.endsWith("refused by demo/deny-8081"))).toMatchObject({
      ...{ subject: `caller:${PEER}`, rule: "refused-by-policy" },
      next: `kmesh explain --from ${PEER} --to ${PORTS.denied}`,
    });
    const socket = join(lab.folder, "run/admin.sock");
    const metrics = await output(["curl", "-sf", "--unix-socket", socket, "http://agent/metrics"]);
    expect(metrics).toMatch(/^kmesh_inbound_refusals(_total)?\{policy="demo\/deny-8081"\} [1-9]/m);
    lab.configure(mesh([]));
    await eventually("the DENY is gone", async () => (await ask(PORTS.denied)) === "app");
    expect(await answers()).toEqual({ ...CLOSED, denied: "app" });
  });

  test("inbound: off lets everybody in; kmesh down leaves nothing", async () => {
    await agent.stop("SIGKILL");
    agent = await lab.liveAgent("--inbound=off");
    expect(await ask(PORTS.strict)).toBe("app");
    const { stdout } = await lab.kmesh("status");
    expect(stdout).toContain("NOT enforced");
    await agent.stop("SIGKILL");
    agent = await lab.liveAgent();
    expect(await ask(PORTS.strict)).toBe("ECONNREFUSED");
    await agent.stop("SIGKILL");
    await lab.kmesh("down", "--yes");
    expect(await ask(PORTS.strict)).toBe("app");
  });
});
