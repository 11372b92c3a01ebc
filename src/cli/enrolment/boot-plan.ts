/** The drop-ins that `kmesh enrol` writes and `unenrol` removes: how a unit starts at boot if kmesh can't. */
import { existsSync } from "node:fs";
import { CONFIG_FILE } from "../../config/sources.ts";
import { asset } from "../../runtime/assets.ts";
import type { Change } from "../config-file/unit-setting.ts";
import { type Arguments, UsageError } from "../framework/arguments.ts";
import { textFlag } from "../framework/command.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { fileStep, type Step } from "../framework/plan.ts";
import { type AtBoot, bootOrderOf, bootRemoval, bootStep, canWait } from "../service/boot-order.ts";
import { installedPaths, type Paths, unitPath } from "../service/install-plan.ts";
import { GATE, needsReload, SERVICE, systemdRuns } from "../service/systemd.ts";
import { runStep } from "../service/systemd-plan.ts";

/** Parses --at-boot. Throws UsageError. */
export function atBootOf(flags: Arguments["flags"]): AtBoot | undefined {
  const text = textFlag(flags, "at-boot");
  if (text === undefined || text === "open" || text === "closed") return text;
  throw new UsageError(`--at-boot: "${text}" is neither open nor closed`, "Write --at-boot closed.");
}

/**
 * Steps that write the drop-ins which differ from the request. Without a request services get `open`, unless they have a
 * drop-in already or kmesh is not a service here. Throws UsageError or Failure for an impossible request.
 */
export function bootSteps(
  kind: Change,
  names: readonly string[],
  asked: AtBoot | undefined,
  config: string,
): Step[] {
  const paths = installedPaths();
  const folder = paths.units;
  const steps: Step[] = [];
  if (kind === "remove") {
    // Another configuration belongs to another kmesh, not to the service.
    if (config === CONFIG_FILE) steps.push(...names.flatMap((name) => bootRemoval(folder, name)));
  } else if (asked !== undefined) {
    requireService(paths, config);
    requireServices(names);
    if (asked === "closed" && paths.origin === "install") steps.push(gateStep(paths));
    steps.push(...names.map((name) => bootStep(folder, name, asked)));
  } else if (config === CONFIG_FILE && existsSync(paths.unit)) {
    const fresh = names.filter((name) => canWait(name) && bootOrderOf(folder, name) === undefined);
    steps.push(...fresh.map((name) => bootStep(folder, name, "open")));
  }
  const ours = names.filter((name) => config === CONFIG_FILE && bootOrderOf(folder, name) !== undefined);
  if (systemdRuns() && (steps.some(({ act }) => act) || ours.some(needsReload)))
    steps.push(runStep("daemon-reload"));
  return steps;
}

/** The unit is missing where an earlier version installed kmesh. */
function gateStep(paths: Paths): Step {
  return fileStep(unitPath(paths, GATE), new TextDecoder().decode(asset(GATE)), 0o644);
}

function requireService(paths: Paths, config: string): void {
  if (config !== CONFIG_FILE)
    throw new UsageError(
      `--at-boot is about ${SERVICE}, which reads ${CONFIG_FILE}, not ${config}`,
      "Leave one of the two out.",
    );
  if (!existsSync(paths.unit))
    throw new Failure(
      EXIT.failed,
      `${SERVICE} is not installed, so nothing starts kmesh at boot`,
      "kmesh install makes it.",
    );
}

function requireServices(names: readonly string[]): void {
  const other = names.find((name) => !canWait(name));
  if (other !== undefined)
    throw new UsageError(
      `--at-boot: ${other} is no service, and has no start that could wait`,
      "Name the services in it.",
    );
}
