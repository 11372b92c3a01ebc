/** Upgrades the agent of the service to the executable that is being installed. */
import { askAgent } from "../../admin/client.ts";
import { type AgentStatus, adminSocket } from "../../admin/status.ts";
import type { Folders } from "../../config/config.ts";
import type { Proof } from "../../handover/predecessor.ts";
import { version } from "../../runtime/version.ts";
import type { Step } from "../framework/plan.ts";
import { CannotHandOver, handOverBy } from "./handover-client.ts";
import type { Paths } from "./install-plan.ts";
import { namesOf, replace, runningNames } from "./swap-executable.ts";
import { SERVICE } from "./systemd.ts";
import { activeState, beginStep } from "./systemd-plan.ts";

/** Time limit of the successor, milliseconds. After it the successor is stopped and the agent continues. */
const PATIENCE = 60_000;

/** The service's agent; undefined when none answers, and then systemd starts the next one. */
export async function serviceAgent(folders: Folders): Promise<AgentStatus | undefined> {
  if (activeState() !== "active") return undefined;
  const agent = await askAgent(adminSocket(folders.runDir), "/agent").catch(() => undefined);
  return agent as AgentStatus | undefined;
}

/**
 * Steps that replace `copy` in `install` when an agent runs: the agent hands over to the new executable as in
 * `kmesh upgrade`, and the executable is installed if that worked. `proved` gets the result. A changed unit file needs a
 * restart of the service.
 */
export function upgradeSteps(
  agent: AgentStatus,
  paths: Paths,
  folders: Folders,
  copy: Step,
  newUnit: boolean,
  proved: (proof: Proof) => void,
): Step[] {
  const restart: Step = { ...beginStep("restart"), note: "connections continue meanwhile" };
  const { installed, next } = namesOf(paths.executable);
  // Started by another unit than ours, for example, which would not start the new executable.
  if (agent.executable !== installed && agent.executable !== next) return copy.act ? [copy, restart] : [];
  const steps: Step[] = [];
  if (copy.act) {
    steps.push({
      ...copy,
      note: `the agent that runs hands over to it first; ${copy.note}`,
      async act() {
        const names = await runningNames(folders);
        await gracefully(
          async () =>
            proved(
              await replace("upgrade", folders, names, process.execPath, { version, names: true }, PATIENCE),
            ),
          async () => {
            await copy.act?.();
            await restart.act?.();
          },
        );
      },
    });
  } else {
    steps.push(copy);
    if (agent.version !== version)
      steps.push({
        action: "run",
        target: "kmesh restart --graceful",
        note: `${agent.version} still runs`,
        act: () =>
          gracefully(
            async () => proved(await handOverBy(folders, { kind: "restart", timeout: PATIENCE })),
            async () => void (await restart.act?.()),
          ),
      });
    else if (!newUnit) steps.push({ action: "keep", target: SERVICE, note: "runs" });
  }
  if (newUnit) steps.push({ ...restart, note: "by its new unit; connections continue meanwhile" });
  return steps;
}

/** Finishes an interrupted upgrade before another executable is installed. */
export function afterLeftovers(copy: Step, folders: Folders): Step {
  if (!copy.act) return copy;
  return {
    ...copy,
    async act() {
      const agent = await serviceAgent(folders);
      if (agent?.executable?.endsWith(".next")) await runningNames(folders);
      await copy.act?.();
    },
  };
}

/** Restarts an agent whose version has no hand-over. */
async function gracefully(handOver: () => Promise<void>, otherwise: () => Promise<void>): Promise<void> {
  try {
    await handOver();
  } catch (error) {
    if (!(error instanceof CannotHandOver)) throw error;
    await otherwise();
  }
}
