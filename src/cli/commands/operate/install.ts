import { existsSync } from "node:fs";
import { type Folders, readFolders } from "../../../config/config.ts";
import { ConfigError } from "../../../config/config-error.ts";
import { SETTINGS, type Setting } from "../../../config/settings.ts";
import { CONFIG_FILE, sourcesOf } from "../../../config/sources.ts";
import { lostInResolved } from "../../../doctor/resolved.ts";
import type { Proof } from "../../../handover/predecessor.ts";
import { examineFiles } from "../../../machine/config-files.ts";
import { requireRoot, Unsupported } from "../../../machine/unsupported.ts";
import { isEmbedded } from "../../../runtime/assets.ts";
import { configTemplate } from "../../config-file/config-file.ts";
import { lockedUnless } from "../../config-file/config-lock.ts";
import { documents } from "../../documents/documents.ts";
import { UsageError } from "../../framework/arguments.ts";
import {
  command,
  FOLDER_FLAGS,
  loadAll,
  OUTPUT_FLAG,
  type Program,
  textFlag,
} from "../../framework/command.ts";
import { EXIT, Failure } from "../../framework/exit.ts";
import { type Format, formatOf, print, printJson, remark } from "../../framework/output.ts";
import { perform, type Step, tell } from "../../framework/plan.ts";
import {
  enableStep,
  installedPaths,
  installSteps,
  type Parts,
  type Paths,
  packageSteps,
  prefixOf,
  uninstallSteps,
  unitPath,
  unitsOf,
  unitTexts,
} from "../../service/install-plan.ts";
import { arrival, type Joining, joinSteps, needOf } from "../../service/join-plan.ts";
import { SERVICE, systemdRuns, TUNNEL, TUNNEL_SOCKETS } from "../../service/systemd.ts";
import { activeState, enableSteps, runStep, startStep, tunnelSteps } from "../../service/systemd-plan.ts";
import { confirmed, findAll, takeDown } from "../../service/teardown.ts";
import { afterLeftovers, serviceAgent, upgradeSteps } from "../../service/upgrade-plan.ts";

/** The configuration file of the service. */
const FOLDERS: Folders = {
  bpffs: SETTINGS.bpffs.fallback,
  stateDir: SETTINGS["state-dir"].fallback,
  runDir: SETTINGS["run-dir"].fallback,
};

const FLAGS: Record<string, Setting> = {
  "dry-run": { kind: "switch", about: "say what would be done, do nothing" },
  root: { kind: "text", hint: "DIR", about: "only the files, below this folder: for packages and images" },
  ...OUTPUT_FLAG,
};

export const install = command({
  name: "install",
  about: "Install this executable, its systemd service and an empty configuration",
  // --root writes files below a folder, which anyone may.
  access: "anyone",
  changes: true,
  flags: {
    start: {
      kind: "switch",
      about: "also start the service; a running agent hands over to the new executable",
    },
    from: {
      kind: "text",
      hint: "DIR|istio",
      about: "join the mesh with istioctl's files, as kmesh join does, and start the service",
    },
    package: {
      kind: "switch",
      about: "with --root: the files of a Debian package, in /usr/bin, without configuration, not enabled",
    },
    ...FLAGS,
  },
  notes: [
    "With a newer executable it is an upgrade: the previous one stays as /usr/local/bin/kmesh.previous, your",
    "configuration and the kernel's state are not changed. With --start a running agent hands over as",
    `in kmesh upgrade; if that fails, the previous executable stays installed (exit code ${EXIT.notHandedOver}).`,
  ].join("\n"),
  examples: [
    ["install --from ./files", "Install, join the mesh with istioctl's files, and start"],
    ["install --dry-run", "Print the steps without doing them"],
  ],
  async run({ flags }, program) {
    const format = formatOf(flags);
    const root = textFlag(flags, "root");
    const from = textFlag(flags, "from");
    const dry = flags["dry-run"] === true;
    const start = flags.start === true || (from !== undefined && root === undefined && flags.start !== false);
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
    if (flags.package === true) return await writePackage(root, dry, format, program);
    const paths = installedPaths(root);
    if (paths.origin === "package")
      throw new Failure(
        EXIT.failed,
        `kmesh is installed here as a package: ${paths.executable} and ${paths.unit} belong to it`,
        "Install the other version's package; kmesh join --from DIR joins a mesh.",
      );
    const more: { remarks?: string[]; proof?: Proof; problems?: { message: string; next: string }[] } = {};
    const done = await lockedUnless(dry || root !== undefined, paths.config, async (written) => {
      const [copy, ...files] = installSteps(paths, await partsFor(paths, program));
      const joining = from === undefined ? undefined : joiningOf(from, root);
      const remarks = [...(joining?.remarks ?? []), ...(root === undefined ? aboutNames() : [])];
      if (remarks.length > 0) more.remarks = remarks;
      // With --from, joining writes the configuration.
      const others = joining ? files.filter(({ target }) => target !== paths.config) : files;
      const newUnit = others.some(({ act, target }) => act && unitsOf(paths).includes(target));
      const fresh = others.some(({ act, target }) => act && target === paths.config);
      const changed = newUnit || copy.act !== undefined;
      const agent = start && !joining ? await serviceAgent(FOLDERS) : undefined;
      // A running agent checks its own configuration, and joining has checked it.
      const problems = root !== undefined || joining || agent ? [] : configProblems(paths, fresh);
      if (problems.length > 0) more.problems = problems.map(({ message, next }) => ({ message, next }));
      const steps = [...others, ...(joining?.steps ?? [])];
      if (root !== undefined) steps.unshift(copy);
      else if (agent === undefined) steps.unshift(afterLeftovers(copy, FOLDERS));
      if (root !== undefined) steps.push(enableStep(paths));
      else steps.push(...enableSteps(paths, changed));
      if (agent) {
        const proved = (proof: Proof) => {
          more.proof = proof;
        };
        steps.push(...upgradeSteps(agent, paths, FOLDERS, copy, newUnit, proved).map(written));
        if (changed) steps.push(...tunnelSteps());
      } else if (start && problems.length === 0) {
        const need = changed ? "restart" : joining ? await needOf(FOLDERS, joining.config) : "nothing";
        steps.push(written(startStep(need)));
      }
      for (const text of remarks) remark(`kmesh: ${text}`);
      await perform(steps, dry, format, more);
      return { joining, problems, changed };
    });
    const [problem] = done.problems;
    if (problem && start && !dry)
      throw new Failure(
        EXIT.usage,
        `${SERVICE} is installed and enabled, and was not started: ${problem.message}`,
        `${problem.next}\n  Then: systemctl start kmesh`,
      );
    if (format === "text" && !dry) {
      if (more.proof) print(formatProof(more.proof));
      print(done.joining && start ? await arrival(FOLDERS) : nextStep(root, problem, done.changed, start));
    }
    return EXIT.done;
  },
});

/** Where the mesh's names end when nobody says otherwise. */
const USUAL_DOMAIN = "svc.cluster.local";

/** What the machine's resolver would do with mesh names. */
function aboutNames(): string[] {
  const lost = lostInResolved(USUAL_DOMAIN);
  return lost
    ? [
        `names below ${USUAL_DOMAIN}, the usual domain of a mesh, will not resolve: ${lost.text}. ${lost.cure}`,
      ]
    : [];
}

async function writePackage(
  root: string | undefined,
  dry: boolean,
  format: Format,
  program: Program,
): Promise<number> {
  if (root === undefined)
    throw new UsageError("--package is about the files of a package, below a folder", "Add --root DIR.");
  const paths = installedPaths(root, "package");
  await perform(packageSteps(paths, await partsFor(paths, program)), dry, format);
  return EXIT.done;
}

async function partsFor(paths: Paths, { commands, about }: Program): Promise<Parts> {
  const { origin } = paths;
  return {
    documents: documents(prefixOf(paths), await loadAll(commands), about),
    executable: process.execPath,
    units: unitTexts(origin),
  };
}

export const uninstall = command({
  name: "uninstall",
  about: "Stop the service, detach everything as down does, and remove what install wrote",
  // --root writes files below a folder, which anyone may.
  access: "anyone",
  changes: true,
  flags: {
    yes: { kind: "switch", about: "do not ask" },
    "keep-state": { kind: "switch", about: "leave /var/lib/kmesh and the configuration" },
    ...FLAGS,
    ...FOLDER_FLAGS,
  },
  examples: [["uninstall --keep-state", "Remove kmesh, and keep its configuration and certificate"]],
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

/** Stops and detaches before it removes files, because a running agent needs them. */
async function serviceEnd(
  flags: Parameters<typeof sourcesOf>[0],
  paths: Paths,
  files: readonly Step[],
): Promise<Step[]> {
  requireRoot("kmesh uninstall");
  const folders = readFolders(sourcesOf(flags, process.env));
  const service = systemdRuns() && existsSync(paths.unit);
  const steps: Step[] = [];
  // The service of a package stays enabled after removal, as for every package.
  const end = paths.origin === "package" ? ["stop"] : ["disable", "--now"];
  if (service) steps.push(runStep(...end, SERVICE));
  // Stop the sockets first, or the next connection starts the tunnel again.
  const sockets = TUNNEL_SOCKETS.filter((name) => existsSync(unitPath(paths, name)));
  if (service && sockets.length > 0) steps.push(runStep("stop", ...sockets, TUNNEL));
  const { pins, agent } = await findAll(folders);
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
  if (service) steps.push(runStep("daemon-reload"));
  return steps;
}

/** Whether the flags name the default configuration and folders, which the service uses. */
function joiningOf(from: string, root: string | undefined): Joining {
  return joinSteps({ from, configFile: CONFIG_FILE, stateDir: FOLDERS.stateDir, root });
}

function requireSystemd(): void {
  if (systemdRuns()) return;
  throw new Unsupported(
    "systemd does not run here, and kmesh install makes a systemd service",
    "Have your own supervisor run `kmesh run`, or write the files only: --root DIR.",
  );
}

function formatProof({ from_version, to_version, pid, gap_ms, connections, failed }: Proof): string {
  return (
    `Handed over from ${from_version} to ${to_version} (pid ${pid}): no agent in control for ${gap_ms} ms, ` +
    `${connections} connections governed meanwhile, ${failed} failed.`
  );
}

/** Reasons why the service would not start with the new file. */
function configProblems(paths: Paths, fresh: boolean): ConfigError[] {
  const file = { path: paths.config, required: true, ...(fresh ? { text: configTemplate() } : {}) };
  try {
    return examineFiles({ flags: {}, env: {}, file }, "problem").problems;
  } catch (error) {
    if (error instanceof ConfigError) return [error];
    throw error;
  }
}

function nextStep(
  root: string | undefined,
  problem: ConfigError | undefined,
  changed: boolean,
  started: boolean,
): string {
  if (root !== undefined)
    return `Done below ${root}. A running machine takes it up with: systemctl daemon-reload`;
  if (started) return "kmesh status shows what it governs.";
  if (problem)
    return [
      `${SERVICE} is enabled, and can't start yet, at boot neither: ${problem.message}`,
      `  ${problem.next}`,
      `Next: mend ${installedPaths().config} (kmesh join --from DIR writes it from istioctl's files), then systemctl start kmesh`,
    ].join("\n");
  if (activeState() === "active")
    return changed
      ? "Next: kmesh restart --graceful switches to the new one; connections continue."
      : "It runs.";
  return "Next: systemctl start kmesh";
}
