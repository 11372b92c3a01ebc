/** The systemctl steps for the service. */
import { existsSync } from "node:fs";
import { EXIT, Failure } from "../framework/exit.ts";
import type { Step } from "../framework/plan.ts";
import { installedPaths, type Paths } from "./install-plan.ts";
import { needsReload, SERVICE, systemctl, TUNNEL, TUNNEL_SOCKETS } from "./systemd.ts";

/** What a running service needs to apply new files. */
export type Need = "nothing" | "reload" | "restart";

/** Applies new files and enables the service at boot. */
export function enableSteps(paths: Paths, changed: boolean): Step[] {
  const steps: Step[] = [];
  if (changed || needsReload(SERVICE)) steps.push(runStep("daemon-reload"));
  if (existsSync(paths.wanted)) steps.push({ action: "keep", target: SERVICE, note: "enabled at boot" });
  else steps.push(runStep("enable", SERVICE));
  return steps;
}

/** Starts the service, or makes it apply new files. */
export function startStep(need: Need): Step {
  if (activeState() !== "active") return beginStep("start");
  if (need === "nothing") return { action: "keep", target: SERVICE, note: "runs" };
  return { ...beginStep(need), note: "connections continue meanwhile" };
}

export function runStep(...args: string[]): Step {
  return { action: "run", target: `systemctl ${args.join(" ")}`, act: () => void systemctl(...args) };
}

/**
 * Replaces a running tunnel with the installed executable. Its connections stay in the old process until they end. Where
 * none runs, starts the sockets that do not listen; systemd starts no socket of a service that runs.
 */
export function tunnelSteps(): Step[] {
  if (activeState(TUNNEL) === "active")
    return [{ ...runStep("reload", TUNNEL), note: "connections continue meanwhile" }];
  const silent = TUNNEL_SOCKETS.filter((name) => activeState(name) !== "active");
  // Not waited for: a port that is in use is a matter of doctor's, and stops no upgrade.
  return silent.length === 0 ? [] : [runStep("start", "--no-block", ...silent)];
}

export function activeState(unit: string = SERVICE): string {
  return systemctl("show", "--property=ActiveState", "--value", unit);
}

/** Whether systemd starts the service again by itself. It does not when only an operator can repair the fault. */
function isTriedAgain(): boolean {
  return systemctl("show", "--property=ActiveState", "--value", SERVICE) !== "failed";
}

/** A failed start is reported with the agent's own message. */
export function beginStep(verb: "start" | "restart" | "reload"): Step {
  return {
    action: "run",
    target: `systemctl ${verb} ${SERVICE}`,
    act() {
      try {
        systemctl(verb, SERVICE);
      } catch {
        throw new Failure(
          EXIT.failed,
          `${SERVICE} is installed but did not ${verb}${isTriedAgain() ? "; systemd keeps trying" : ""}`,
          `Its own words: journalctl -u ${SERVICE} -n 20. Most often the configuration lacks something: ${installedPaths().config}`,
        );
      }
    },
  };
}
