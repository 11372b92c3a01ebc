import { existsSync } from "node:fs";
import { readFolders, type Setting, sourcesOf } from "../agent/config.ts";
import { requireRoot, Unsupported } from "../agent/unsupported.ts";
import { asset, isEmbedded } from "../runtime/assets.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG, textFlag } from "./command.ts";
import { EXIT, Failure } from "./exit.ts";
import {
  enableStep,
  installedPaths,
  installSteps,
  type Paths,
  type Step,
  uninstallSteps,
} from "./installation.ts";
import { type Format, formatOf, print, printJson } from "./output.ts";
import { SERVICE, systemctl, systemdRuns } from "./systemd.ts";
import { confirmed, standing, takeDown } from "./teardown.ts";

const FLAGS: Record<string, Setting> = {
  "dry-run": { kind: "switch", about: "say what would be done, do nothing" },
  root: { kind: "text", hint: "DIR", about: "only the files, below this folder: for packages and images" },
  ...OUTPUT_FLAG,
};

export const install = command({
  name: "install",
  about: "Put this executable, its systemd service and an empty configuration into place",
  flags: {
    start: { kind: "switch", about: "start the service too, or restart it when something is new" },
    ...FLAGS,
  },
  notes: [
    "Again with a newer executable it is an upgrade: the one before stays as /usr/local/bin/kmesh.previous, your",
    "configuration stays as it is, and what the kernel holds is not touched.",
  ].join("\n"),
  async run({ flags }) {
    const format = formatOf(flags);
    const root = textFlag(flags, "root");
    if (root === undefined) {
      requireRoot("kmesh install");
      requireSystemd();
    } else if (flags.start === true) {
      throw new Failure(EXIT.usage, "--root writes files only, nothing can be started", "Leave out --start.");
    }
    if (!isEmbedded())
      throw new Unsupported(
        "this is kmesh's source, no executable",
        "Run ./build/compile, then dist/kmesh install.",
      );
    const paths = installedPaths(root);
    const unit = new TextDecoder().decode(asset(SERVICE));
    const steps = installSteps(paths, { executable: process.execPath, unit });
    const changed = steps.some(({ act, target }) => act && target !== paths.config);
    if (root !== undefined) steps.push(enableStep(paths));
    else steps.push(...serviceSteps(paths, changed, flags.start === true));
    const fresh = steps.some(({ act, target }) => act && target === paths.config);
    await perform(steps, flags["dry-run"] === true, format);
    if (format === "text" && flags["dry-run"] !== true)
      print(nextStep(root, fresh, changed, flags.start === true));
    return EXIT.done;
  },
});

export const uninstall = command({
  name: "uninstall",
  about: "Stop the service, detach everything as down does, and remove what install wrote",
  flags: {
    yes: { kind: "switch", about: "do not ask" },
    "keep-state": { kind: "switch", about: "leave /var/lib/kmesh and the configuration" },
    ...FLAGS,
    ...FOLDER_FLAGS,
  },
  async run({ flags }) {
    const format = formatOf(flags);
    const root = textFlag(flags, "root");
    const dry = flags["dry-run"] === true;
    const paths = installedPaths(root);
    const files = uninstallSteps(paths, flags["keep-state"] === true);
    const steps = root === undefined ? await serviceEnd(flags, paths, files) : files;
    if (!steps.some(({ act }) => act)) {
      if (format === "json") printJson({ dryRun: dry, steps: steps.map(({ act: _, ...told }) => told) });
      else print("Nothing to do: kmesh is not installed, and nothing is pinned.");
      return EXIT.done;
    }
    if (!dry && flags.yes !== true && !(await confirmed(`${tell(steps)}\n`)))
      throw new Failure(EXIT.failed, "nothing was changed");
    await perform(steps, dry, format);
    return EXIT.done;
  },
});

/** What systemd is told after the files are in place. */
function serviceSteps(paths: Paths, changed: boolean, start: boolean): Step[] {
  const steps: Step[] = [];
  if (changed) steps.push(run("daemon-reload"));
  if (existsSync(paths.wanted)) steps.push({ action: "keep", target: SERVICE, note: "enabled at boot" });
  else steps.push(run("enable", SERVICE));
  if (!start) return steps;
  const active = activeState() === "active";
  if (active && !changed) steps.push({ action: "keep", target: SERVICE, note: "runs" });
  else if (active) steps.push({ ...begin("restart"), note: "connections go on meanwhile" });
  else steps.push(begin("start"));
  return steps;
}

/** Stopping and detaching come first: files that are in use must not be missing. */
async function serviceEnd(
  flags: Parameters<typeof sourcesOf>[0],
  paths: Paths,
  files: readonly Step[],
): Promise<Step[]> {
  requireRoot("kmesh uninstall");
  const folders = readFolders(sourcesOf(flags, process.env));
  const service = systemdRuns() && existsSync(paths.unit);
  const steps: Step[] = [];
  if (service) steps.push(run("disable", "--now", SERVICE));
  const { pins, agent } = await standing(folders);
  if (pins > 0 || agent !== undefined) {
    steps.push({
      action: "detach",
      target: folders.bpffs,
      note: `${pins} programs, maps and links; new connections then go where apps send them`,
      act: async () =>
        void (await takeDown(folders, flags["keep-state"] === true ? "keep state" : "remove snapshot")),
    });
  }
  steps.push(...files);
  if (folders.stateDir !== paths.state && existsSync(folders.stateDir))
    steps.push({ action: "keep", target: folders.stateDir, note: "not made by the service" });
  if (service) steps.push(run("daemon-reload"));
  return steps;
}

function run(...args: string[]): Step {
  return { action: "run", target: `systemctl ${args.join(" ")}`, act: () => void systemctl(...args) };
}

/** A start that fails is told with the agent's own words. */
function begin(verb: "start" | "restart"): Step {
  return {
    action: "run",
    target: `systemctl ${verb} ${SERVICE}`,
    act() {
      try {
        systemctl(verb, SERVICE);
      } catch {
        throw new Failure(
          EXIT.failed,
          `${SERVICE} is installed but did not start; systemd goes on trying`,
          `Its own words: journalctl -u ${SERVICE} -n 20. Most often the configuration lacks something: ${installedPaths().config}`,
        );
      }
    },
  };
}

function activeState(): string {
  return systemctl("show", "--property=ActiveState", "--value", SERVICE);
}

function requireSystemd(): void {
  if (systemdRuns()) return;
  throw new Unsupported(
    "systemd does not run here, and kmesh install makes a systemd service",
    "Have your own supervisor run `kmesh run`, or write the files only: --root DIR.",
  );
}

/** Tells each step and does it; a failure ends it there, and what was done stays done: run it again. */
async function perform(steps: readonly Step[], dry: boolean, format: Format): Promise<void> {
  if (dry && format === "text") print("Dry run, nothing is changed:");
  for (const step of steps) {
    if (format === "text") print(tell([step]));
    if (!dry) await step.act?.();
  }
  if (format === "json") printJson({ dryRun: dry, steps: steps.map(({ act: _, ...told }) => told) });
}

function tell(steps: readonly Step[]): string {
  return steps
    .map(
      ({ action, target, note }) => `${action.padEnd(8)}${target}${note === undefined ? "" : ` (${note})`}`,
    )
    .join("\n");
}

function nextStep(root: string | undefined, fresh: boolean, changed: boolean, started: boolean): string {
  if (root !== undefined)
    return `Done below ${root}. A running machine takes it up with: systemctl daemon-reload`;
  if (started) return "kmesh status shows what it governs.";
  if (fresh) return `Next: say where istiod is in ${installedPaths().config}, then systemctl start kmesh`;
  if (activeState() === "active")
    return changed
      ? "Next: systemctl restart kmesh takes the new one into use; connections go on."
      : "It runs.";
  return "Next: systemctl start kmesh";
}
