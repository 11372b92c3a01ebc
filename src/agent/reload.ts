/** What a changed configuration means for an agent that runs. */
import { isDeepStrictEqual } from "node:util";
import type { Config, SettingName } from "./config.ts";

/** The settings that are decided in the kernel's program, by a map: they change under running connections. */
export type LiveSettings = Pick<Config, "cgroups" | "units" | "excludes" | "netns" | "shadow">;

const NAMES: Record<keyof Config, SettingName> = {
  istiod: "istiod",
  hosts: "hosts",
  caServer: "ca-server",
  plaintext: "plaintext",
  ca: "ca",
  token: "token",
  mode: "mode",
  namespace: "namespace",
  serviceAccount: "service-account",
  trustDomain: "trust-domain",
  name: "name",
  ips: "ip",
  serviceIp: "service-ip",
  locality: "locality",
  clusterId: "cluster-id",
  network: "network",
  meshId: "mesh-id",
  labels: "labels",
  workloadName: "workload-name",
  workloadGroup: "workload-group",
  workloadEntry: "workload-entry",
  ports: "ports",
  readinessProbe: "readiness-probe",
  probeLocalhost: "probe-localhost",
  metadata: "metadata",
  cgroups: "cgroup",
  units: "unit",
  excludes: "exclude",
  netns: "netns",
  shadow: "shadow",
  allowPlaintext: "allow-plaintext",
  logLevel: "log-level",
  bpffs: "bpffs",
  stateDir: "state-dir",
  runDir: "run-dir",
};

const LIVE: ReadonlySet<string> = new Set<keyof LiveSettings>([
  "cgroups",
  "units",
  "excludes",
  "netns",
  "shadow",
]);

export interface Differences {
  /** Settings that a running agent can take over. */
  live: SettingName[];
  /** Settings that the next start takes over. */
  later: SettingName[];
}

/** The names of the settings in which two configurations differ, as the file writes them. */
export function differences(before: Config, after: Config): Differences {
  const result: Differences = { live: [], later: [] };
  for (const [key, name] of Object.entries(NAMES)) {
    const at = key as keyof Config;
    if (!isDeepStrictEqual(before[at], after[at])) result[LIVE.has(key) ? "live" : "later"].push(name);
  }
  return result;
}

/** One line for the log and for `systemctl status`. */
export function tellReload({ live, later }: Differences): string {
  const done =
    live.length > 0
      ? `Reloaded ${live.join(", ")}`
      : "Reloaded: nothing that can change without a restart did";
  return later.length > 0
    ? `${done}. A restart is needed for ${later.join(", ")} (connections go on meanwhile)`
    : done;
}
