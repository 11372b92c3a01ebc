/** The steps of `kmesh demo`, and its checks. */
import { type Ledger, spreadBetween } from "./ledger.ts";
import { MESH, type Shares, shareOf } from "./mesh.ts";
import { type Stage, sleep } from "./stage.ts";

export interface ScriptOptions {
  /** Observation time of each state of the mesh, seconds. */
  seconds: number;
  /** New connections per second, and connections that stay open. */
  rate: number;
  longLived: number;
  /** Called at the end of each step. */
  on(event: DemoEvent): void;
}

export type DemoEvent =
  | { kind: "built"; agentPid: number }
  | { kind: "load"; rate: number; longLived: number }
  | { kind: "watched"; step: Step }
  | { kind: "shifted"; to: Shares; milliseconds: number }
  | { kind: "killed"; pid: number }
  | { kind: "changed-unseen"; to: Shares }
  | { kind: "restarted"; pid: number; adopted: boolean; writes: number };

/** One state of the mesh, and the distribution of new connections in it. */
export interface Step {
  name: string;
  configured: Shares;
  /** False while the agent is dead. */
  agentAlive: boolean;
  connections: number;
  spread: { upstream: string; connections: number; share: number; expected: number }[];
}

export interface DemoReport {
  /** Whether all checks passed. */
  ok: boolean;
  connections: { made: number; failed: number; withoutAgent: number };
  longLived: { opened: number; cut: number; answers: number };
  /** Connections whose peer address differs from the requested one. */
  wrongPeer: number;
  /** Queries for the service's name. */
  names: { resolved: number; unresolved: number };
  /** Milliseconds from SIGKILL until the next agent's tables were live. */
  unattendedMilliseconds: number;
  restart: { adopted: boolean; mapWrites: number };
  steps: Step[];
  reasons: Record<string, number>;
}

const FIRST: Shares = { v1: 90, v2: 10 };
const SECOND: Shares = { v1: 50, v2: 50 };
const THIRD: Shares = { v1: 20, v2: 80 };

/** Builds the stage and plays the script. Rejects when a process of the demo fails. */
export async function playScript(stage: Stage, options: ScriptOptions): Promise<DemoReport> {
  const { seconds, rate, longLived, on } = options;
  const steps: Step[] = [];
  const watch = async (name: string, configured: Shares, agentAlive: boolean) => {
    const before = await stage.ledger();
    await sleep(seconds * 1000);
    const step = stepOf(name, configured, agentAlive, before, await stage.ledger());
    steps.push(step);
    on({ kind: "watched", step });
  };

  await stage.build(FIRST);
  await stage.startAgent();
  on({ kind: "built", agentPid: stage.agentPid });
  await stage.startLoad({ rate, longLived, beat: 50, patience: 3_000 });
  on({ kind: "load", rate, longLived });
  await sleep(300);
  await watch("as configured", FIRST, true);

  on({ kind: "shifted", to: SECOND, milliseconds: await shift(stage, SECOND) });
  await watch("shifted live", SECOND, true);

  const beforeKill = await stage.ledger();
  const killedPid = stage.agentPid;
  const killedAt = Date.now();
  await stage.killAgent();
  on({ kind: "killed", pid: killedPid });
  await watch("the agent is dead", SECOND, false);
  stage.configure(THIRD);
  on({ kind: "changed-unseen", to: THIRD });
  await watch("dead, configuration changed", SECOND, false);

  const status = await stage.startAgent();
  const afterStart = await stage.ledger();
  const unattendedMilliseconds = Date.parse(status.tables.firstApplyAt ?? "") - killedAt;
  const mapWrites = status.tables.firstWrites ?? Number.NaN;
  on({ kind: "restarted", pid: status.pid, adopted: status.adopted, writes: mapWrites });
  await watch("started again", THIRD, true);

  const last = await stage.stopLoad();
  const report: DemoReport = {
    ok: true,
    connections: { made: last.made, failed: last.failed, withoutAgent: afterStart.made - beforeKill.made },
    longLived: { opened: longLived, cut: last.cut, answers: last.answers },
    wrongPeer: last.wrongPeer,
    names: { resolved: last.resolved, unresolved: last.unresolved },
    unattendedMilliseconds,
    restart: { adopted: status.adopted, mapWrites },
    steps,
    reasons: last.reasons,
  };
  report.ok = isAsPromised(report);
  return report;
}

/** Nothing failed, nothing was cut, the restart adopted, and each spread is what was configured. */
export function isAsPromised(report: DemoReport): boolean {
  const { connections, longLived, wrongPeer, names, restart, steps } = report;
  return (
    connections.made > 0 &&
    connections.failed === 0 &&
    connections.withoutAgent > 0 &&
    longLived.cut === 0 &&
    wrongPeer === 0 &&
    names.resolved > 0 &&
    names.unresolved === 0 &&
    restart.adopted &&
    steps.every(isSpreadRight)
  );
}

/** Tolerance for connections that are in progress when a step begins or ends. */
function isSpreadRight(step: Step): boolean {
  const slack = Math.max(0.02, 10 / Math.max(1, step.connections));
  return (
    step.connections > 0 && step.spread.every(({ share, expected }) => Math.abs(share - expected) <= slack)
  );
}

export function stepOf(
  name: string,
  configured: Shares,
  agentAlive: boolean,
  before: Ledger,
  after: Ledger,
): Step {
  const spread = spreadBetween(
    before,
    after,
    MESH.upstreams.map((upstream) => upstream.name),
  );
  return {
    name,
    configured,
    agentAlive,
    connections: after.made - before.made,
    spread: spread.map((each) => ({ ...each, expected: shareOf(each.upstream, configured) })),
  };
}

/** Changes the configuration under load. Returns the time from the file's change to live tables. */
async function shift(stage: Stage, to: Shares): Promise<number> {
  const { tables } = await stage.agentOnce(() => true);
  const begun = Date.now();
  stage.configure(to);
  const after = await stage.agentOnce((status) => status.tables.applies > tables.applies);
  return Date.parse(after.tables.lastApplyAt ?? "") - begun;
}
