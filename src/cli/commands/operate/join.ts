import { existsSync } from "node:fs";
import { readFolders } from "../../../config/config.ts";
import { CONFIG_FILE, sourcesOf } from "../../../config/sources.ts";
import { lockedUnless } from "../../config-file/config-lock.ts";
import { ISTIO } from "../../config-file/membership-files.ts";
import { command, FOLDER_FLAGS, OUTPUT_FLAG, textFlag } from "../../framework/command.ts";
import { EXIT } from "../../framework/exit.ts";
import { formatOf, print, remark } from "../../framework/output.ts";
import { perform } from "../../framework/plan.ts";
import { installedPaths } from "../../service/install-plan.ts";
import { arrival, joinSteps, needOf, spiffeOf } from "../../service/join-plan.ts";
import { systemdRuns } from "../../service/systemd.ts";
import { startStep } from "../../service/systemd-plan.ts";

export const join = command({
  name: "join",
  about: "Join a mesh with the files of istioctl x workload entry configure",
  changes: true,
  flags: {
    from: {
      kind: "text",
      hint: "DIR|istio",
      about: "the folder of the five files; istio: where Istio's own agent has them",
      fallback: ISTIO,
    },
    start: { kind: "switch", about: "start the service, or have it take up what is new (--no-start: don't)" },
    "dry-run": { kind: "switch", about: "say what would be done, do nothing" },
    ...FOLDER_FLAGS,
    ...OUTPUT_FLAG,
  },
  notes: [
    "All five files are read and checked before anything is written. The roots and the token are kept in the state",
    "folder for root alone, the rest becomes keys of the configuration file; its other keys stay as they are. The files",
    "are not needed any more then. Again with newer files, only what is new is taken over.",
    "",
    "Istio's own places are /var/lib/istio/envoy/cluster.env, /etc/istio/config/mesh, /etc/certs/root-cert.pem and",
    "/var/run/secrets/tokens/istio-token. A folder that is called istio is ./istio.",
  ].join("\n"),
  examples: [
    ["join --from ./files --dry-run", "Check istioctl's five files, and show what would be done"],
    ["join --from istio", "Take over what Istio's own agent has on this machine"],
  ],
  async run({ flags }) {
    const format = formatOf(flags);
    const dry = flags["dry-run"] === true;
    const sources = sourcesOf(flags, process.env);
    // A missing file is not an error here.
    const folders = readFolders({ ...sources, file: { ...sources.file, required: false } });
    const service = sources.file.path === CONFIG_FILE && systemdRuns() && existsSync(installedPaths().unit);
    const starts = service && flags.start !== false;
    const config = await lockedUnless(dry, sources.file.path, async (written) => {
      const { steps, remarks, config } = joinSteps({
        from: textFlag(flags, "from") ?? ISTIO,
        configFile: sources.file.path,
        stateDir: folders.stateDir,
      });
      if (starts) steps.push(written(startStep(await needOf(folders, config))));
      for (const text of remarks) remark(`kmesh: ${text}`);
      await perform(steps, dry, format, { identity: spiffeOf(config), remarks });
      return config;
    });
    if (format === "text" && !dry) {
      if (starts) print(await arrival(folders));
      else
        print(
          `This machine is to be ${spiffeOf(config)}. Next: ${service ? "systemctl restart kmesh" : "kmesh run"}`,
        );
    }
    return EXIT.done;
  },
});
