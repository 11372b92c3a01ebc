/** The agent that the service runs makes way for the executable that is being installed. */
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

/** The successor may take so long, milliseconds; then it is stopped, and all is as before. */
const PATIENCE = 60_000;

/** The service's agent; undefined when none answers: systemd starts the next one then. */
export async function serviceAgent(folders: Folders): Promise<AgentStatus | undefined> {
  if (activeState() !== "active") return undefined;
  const agent = await askAgent(adminSocket(folders.runDir), "/agent").catch(() => undefined);
  return agent as AgentStatus | undefined;
}

/**
 * What `install` does with its executable and with the agent that runs, in place of `copy`, which would only put the
 * executable into place: the agent hands over to it first, as with `kmesh upgrade`, and it gets its name when that
 * worked. `proved` hears how it went. A new unit is what systemd starts by, so the service is restarted for it.
 */
export function upgradeSteps(
  agent: AgentStatus,
  paths: Paths,
  folders: Folders,
  copy: Step,
  newUnit: boolean,
  proved: (proof: Proof) => void,
): Step[] {
  const restart: Step = { ...beginStep("restart"), note: "connections go on meanwhile" };
  const { installed, next } = namesOf(paths.executable);
  // By another unit than ours, say: it would not start the new one either.
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
  if (newUnit) steps.push({ ...restart, note: "by its new unit; connections go on meanwhile" });
  return steps;
}

/** Puts away what an upgrade left whose terminal was lost, before another executable gets the name. */
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

/** An agent from before there were hand-overs is restarted. */
async function gracefully(handOver: () => Promise<void>, otherwise: () => Promise<void>): Promise<void> {
  try {
    await handOver();
  } catch (error) {
    if (!(error instanceof CannotHandOver)) throw error;
    await otherwise();
  }
}
