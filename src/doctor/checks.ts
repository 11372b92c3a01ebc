/** The checks of `kmesh doctor`, each after those that it depends on. */
import type { ExaminedConfig } from "../machine/config-files.ts";
import type { Check } from "./check-runner.ts";
import { istiodChecks } from "./istiod-checks.ts";
import { machineChecks } from "./machine-checks.ts";
import { nameChecks } from "./name-checks.ts";
import { tunnelChecks } from "./tunnel-checks.ts";

/** All checks for a configuration. The first one checks the configuration itself. */
export function checksOf(examined: ExaminedConfig, file: string): Check[] {
  const { config, problems, remarks } = examined;
  const configuration: Check = {
    name: "configuration",
    needs: [],
    look: () => [
      ...(problems.length === 0
        ? [{ state: "ok", text: `read (flags, environment, ${file})` } as const]
        : problems.map(({ message, next }) => ({ state: "error", text: message, cure: next }) as const)),
      ...remarks.map(({ text, cure }) => ({ state: "warning", text, cure }) as const),
    ],
  };
  return [
    configuration,
    ...machineChecks(config),
    ...nameChecks(config),
    ...istiodChecks(config),
    ...tunnelChecks(config),
  ];
}
