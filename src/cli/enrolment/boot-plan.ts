/** What a unit gets at boot when kmesh can't come up: the drop-ins that `kmesh enrol` writes and `unenrol` removes. */
import { existsSync } from "node:fs";
import { CONFIG_FILE } from "../../config/sources.ts";
import { asset } from "../../runtime/assets.ts";
import type { Change } from "../config-file/unit-setting.ts";
import { type Arguments, UsageError } from "../framework/arguments.ts";
import { textFlag } from "../framework/command.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { fileStep, type Step } from "../framework/plan.ts";
import { type AtBoot, bootOrderOf, bootRemoval, bootStep, canWait } from "../service/boot-order.ts";
import { installedPaths, type Paths } from "../service/install-plan.ts";
import { GATE, needsReload, SERVICE, systemdRuns } from "../service/systemd.ts";
import { runStep } from "../service/systemd-plan.ts";

/** What was asked for. Throws UsageError. */
export function atBootOf(flags: Arguments["flags"]): AtBoot | undefined {
  const text = textFlag(flags, "at-boot");
  if (text === undefined || text === "open" || text === "closed") return text;
  throw new UsageError(`--at-boot: "${text}" is neither open nor closed`, "Write --at-boot closed.");
}

/**
 * The drop-ins, as far as they are not as they should be. Where nothing was asked for, services get `open`, unless somebody
 * said something before, or kmesh is no service here. Throws UsageError or Failure for what can't be.
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
    // Another configuration is another kmesh's, not the service's.
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

/** Where kmesh was installed by an earlier version it is not there yet. */
function gateStep(paths: Paths): Step {
  return fileStep(paths.gate, new TextDecoder().decode(asset(GATE)), 0o644);
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
