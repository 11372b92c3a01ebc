/** Looks for what keeps this machine from the mesh, in the order in which one thing needs the other. */
import { statSync } from "node:fs";
import type { Config } from "../config/config.ts";
import type { ConfigError } from "../config/config-error.ts";
import type { Check, Finding } from "./check-runner.ts";
import { istiodChecks } from "./istiod-checks.ts";
import { machineChecks } from "./machine-checks.ts";

/** The checks for a configuration, and for what is wrong with it. */
export function checksOf(config: Config, problems: readonly ConfigError[], file: string): Check[] {
  const configuration: Check = {
    name: "configuration",
    needs: [],
    look: () => [
      ...(problems.length === 0
        ? [{ state: "ok", text: `read (flags, environment, ${file})` } as const]
        : problems.map(({ message, next }) => ({ state: "error", text: message, cure: next }) as const)),
      ...lookAtMode(file),
    ],
  };
  return [configuration, ...machineChecks(config), ...istiodChecks(config)];
}

/** Who writes the configuration decides what root runs: a probe's command. */
function lookAtMode(file: string): Finding[] {
  const mode = statSync(file, { throwIfNoEntry: false })?.mode ?? 0;
  if ((mode & 0o022) === 0) return [];
  return [
    {
      state: "warning",
      text: `others can write ${file}, and so what runs here as root`,
      cure: `chmod go-w ${file}`,
    },
  ];
}
