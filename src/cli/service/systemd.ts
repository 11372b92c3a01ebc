/** systemd as the commands need it: is it there, ask it, and which of its services an agent is. */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { SERVICE } from "../../machine/service-sandbox.ts";
import { EXIT, Failure } from "../framework/exit.ts";

export { SERVICE };

/** Ends when connections are governed; units that are closed at boot require it. */
export const GATE = "kmesh-wait.service";

/** Carries what needs mutual TLS; its socket starts it. */
export const TUNNEL = "kmesh-tunnel.service";
export const TUNNEL_SOCKET = "kmesh-tunnel.socket";

/** Whether this machine was booted with systemd: sd_booted(3). */
export function systemdRuns(): boolean {
  return existsSync("/run/systemd/system");
}

/**
 * Runs systemctl and gives what it printed. Once more when a hangup ended it: systemd does the job all the same, and this
 * process is to know how it went. Throws Failure with its words when it fails.
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

/** Whether what systemd read of a unit is older than its files: who wrote them may have been killed before it was told. */
export function needsReload(unit: string): boolean {
  if (!systemdRuns()) return false;
  try {
    return systemctl("show", "--property=NeedDaemonReload", "--value", "--", unit) === "yes";
  } catch {
    return false;
  }
}

/**
 * The service whose main process `pid` is: one that systemd would start again if we ended it ourselves. undefined when
 * it is nobody's, as an agent that was started by hand in a shell or by some other service.
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

/** The innermost system service that a text as of /proc/PID/cgroup speaks of. */
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
