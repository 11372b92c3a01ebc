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
      about: "the folder of the five files; istio: the places of Istio's own agent",
      fallback: ISTIO,
    },
    start: { kind: "switch", about: "start the service, or let it apply the changes (--no-start: don't)" },
    "dry-run": { kind: "switch", about: "print the steps without doing them" },
    ...FOLDER_FLAGS,
    ...OUTPUT_FLAG,
  },
  notes: [
    "All five files are checked before anything is written. Roots and token are copied to the state",
    "folder, readable by root only; the rest becomes keys of the configuration file, and its other keys stay. The files",
    "are then no longer needed. Run it again with newer files to apply their changes.",
    "",
    "Istio's own places are /var/lib/istio/envoy/cluster.env, /etc/istio/config/mesh, /etc/certs/root-cert.pem and",
    "/var/run/secrets/tokens/istio-token. A folder that is called istio is ./istio.",
  ].join("\n"),
  examples: [
    ["join --from ./files --dry-run", "Check istioctl's five files, and print the steps"],
    ["join --from istio", "Use the files of Istio's own agent on this machine"],
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
