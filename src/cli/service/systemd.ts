/** Calls systemctl, and finds the service of an agent. */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { SERVICE } from "../../machine/service-sandbox.ts";
import { TUNNEL } from "../../machine/tunnel/sockets.ts";
import { EXIT, Failure } from "../framework/exit.ts";

export { SERVICE, TUNNEL };

/** Finishes when connections are governed. Units that are `closed` at boot require it. */
export const GATE = "kmesh-wait.service";

/** Each holds one socket of the tunnel, since the sockets of one unit share one FileDescriptorName=. */
export const TUNNEL_SOCKETS = [
  "kmesh-tunnel.socket",
  "kmesh-tunnel-hbone.socket",
  "kmesh-tunnel-inbound.socket",
  "kmesh-tunnel-inbound6.socket",
] as const;

/** Every unit of kmesh. */
export const UNITS = [SERVICE, GATE, TUNNEL, ...TUNNEL_SOCKETS] as const;
export type UnitName = (typeof UNITS)[number];

/** Whether this machine was booted with systemd: sd_booted(3). */
export function systemdRuns(): boolean {
  return existsSync("/run/systemd/system");
}

/**
 * Runs systemctl and returns its output. If a hangup ends it, it runs once more, because systemd does the job anyway and
 * this process needs the result. Throws Failure with systemctl's message.
 */
export function systemctl(...args: string[]): string {
  const ask = () =>
    spawnSync("systemctl", ["--no-ask-password", ...args], {
      encoding: "utf8",
      // Not the bus of a user's session.
      env: { ...process.env, DBUS_SESSION_BUS_ADDRESS: "" },
    });
  const first = ask();
  const { status, stdout, stderr, error } = first.signal === "SIGHUP" ? ask() : first;
  if (status === 0) return stdout.trim();
  const words = error?.message ?? stderr.trim().split("\n")[0] ?? "";
  throw new Failure(EXIT.failed, `systemctl ${args.join(" ")} failed: ${words}`);
}

/** Whether systemd must reload a unit, because its files changed without a daemon-reload. */
export function needsReload(unit: string): boolean {
  if (!systemdRuns()) return false;
  try {
    return systemctl("show", "--property=NeedDaemonReload", "--value", "--", unit) === "yes";
  } catch {
    return false;
  }
}

/**
 * The service whose main process is `pid`; systemd would start it again if kmesh ended the process. undefined for an
 * agent that was started in a shell or by another service.
 */
export function serviceOf(pid: number): string | undefined {
  if (!systemdRuns()) return undefined;
  let cgroups: string;
  try {
    cgroups = readFileSync(`/proc/${pid}/cgroup`, "utf8");
  } catch {
    return undefined;
  }
  const unit = serviceInCgroups(cgroups);
  if (unit === undefined) return undefined;
  try {
    return systemctl("show", "--property=MainPID", "--value", unit) === String(pid) ? unit : undefined;
  } catch {
    return undefined;
  }
}

/** The innermost system service in the text of /proc/PID/cgroup. */
export function serviceInCgroups(text: string): string | undefined {
  for (const line of text.split("\n")) {
    const [, controllers, ...path] = line.split(":");
    // cgroup2, or systemd's own hierarchy where there are several.
    if (controllers !== "" && controllers !== "name=systemd") continue;
    const last = path.join(":").split("/").at(-1) ?? "";
    if (last.endsWith(".service")) return last;
  }
  return undefined;
}
