/** The content of a bug report: output of kmesh's commands and of the machine's tools, and files of the kernel. */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { reasonOf } from "../../errors/reason.ts";
import { selfCommand } from "../../runtime/self.ts";
import { SERVICE } from "../service/systemd.ts";
import { redactJson, redactText, redactYaml } from "./redact.ts";

/** Time limit of one command, milliseconds. */
const PATIENCE = 30_000;
/** Longest output, bytes. Of a longer log the end is kept. */
const MOST = 32 << 20;

/** One file of the report. */
export interface Fact {
  name: string;
  text: string;
}

interface Source {
  name: string;
  read(): Promise<string>;
  redact(text: string): string;
}

/** Where the facts come from. `flags` name the mesh for kmesh's own commands; `config` is the configuration file. */
export function sources(flags: readonly string[], config: string): Source[] {
  const own = (name: string, ...args: string[]): Source => ({
    name,
    read: () => output([...selfCommand(), ...args, ...flags]),
    redact: name.endsWith(".json") ? redactJson : redactText,
  });
  const tool = (name: string, ...command: string[]): Source => ({
    name,
    read: () => output(command),
    redact: redactText,
  });
  const file = (name: string, path: string, redact = redactText): Source => ({
    name,
    read: async () => readFileSync(path, "utf8"),
    redact,
  });
  return [
    { ...own("version.json"), read: () => output([...selfCommand(), "version", "-o", "json"]) },
    own("status.txt", "status", "--all"),
    own("status.json", "status", "-o", "json"),
    { ...own("doctor.json"), read: () => output([...selfCommand(), "doctor", "-o", "json", ...flags]) },
    own("history.json", "history", "-o", "json"),
    own("cert.json", "cert", "-o", "json"),
    own("topology.json", "topology", "--idle", "-o", "json"),
    own("dump/received.json", "dump", "received", "-o", "json"),
    own("dump/model.json", "dump", "model", "-o", "json"),
    own("dump/tables.json", "dump", "tables", "-o", "json"),
    file("config.yaml", config, redactYaml),
    tool("journal.txt", "journalctl", "-u", SERVICE, "-n", "5000", "--no-pager", "-o", "short-iso"),
    tool("unit.txt", "systemctl", "show", SERVICE, "--no-pager"),
    tool("kernel/uname.txt", "uname", "-a"),
    file("kernel/cmdline.txt", "/proc/cmdline"),
    file("kernel/mounts.txt", "/proc/self/mountinfo"),
    file("kernel/os-release.txt", "/etc/os-release"),
    file("kernel/lsm.txt", "/sys/kernel/security/lsm"),
    file("kernel/lockdown.txt", "/sys/kernel/security/lockdown"),
    file("kernel/meminfo.txt", "/proc/meminfo"),
    file("kernel/cpus.txt", "/sys/devices/system/cpu/online"),
    tool(
      "kernel/config.txt",
      "sh",
      "-c",
      'zcat /proc/config.gz 2>/dev/null || cat "/boot/config-$(uname -r)"',
    ),
    tool(
      "kernel/sysctl.txt",
      "sysctl",
      "kernel.unprivileged_bpf_disabled",
      "net.core.bpf_jit_enable",
      "net.ipv4.ip_local_port_range",
      "net.mptcp.enabled",
    ),
    tool("kernel/log.txt", "sh", "-c", "dmesg | grep -iE 'bpf|cgroup|kmesh|oom|BUG|WARNING' | tail -n 500"),
    tool("network/addresses.txt", "ip", "address"),
    tool("network/routes.txt", "ip", "route", "show", "table", "all"),
    tool("network/sockets.txt", "ss", "-s"),
    tool("bpf/programs.txt", "bpftool", "prog", "show"),
    tool("bpf/maps.txt", "bpftool", "map", "show"),
    tool("bpf/links.txt", "bpftool", "link", "show"),
    tool("bpf/cgroups.txt", "bpftool", "cgroup", "tree"),
    tool("bpf/pins.txt", "find", "/sys/fs/bpf", "-maxdepth", "4"),
  ];
}

/** Reads one source, without secrets. If it fails, the file holds the error. */
export async function gather({ name, read, redact }: Source): Promise<Fact> {
  try {
    return { name, text: redact(await read()) };
  } catch (error) {
    return { name, text: `not to be had: ${redactText(reasonOf(error))}\n` };
  }
}

/** Standard output, followed by standard error if the command failed. Rejects when it can't start or takes too long. */
function output([file = "", ...args]: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, {
      stdio: ["ignore", "pipe", "pipe"],
      timeout: PATIENCE,
      killSignal: "SIGKILL",
    });
    let text = "";
    let complaints = "";
    child.stdout.setEncoding("utf8").on("data", (part: string) => {
      text = (text + part).slice(-MOST);
    });
    child.stderr.setEncoding("utf8").on("data", (part: string) => {
      complaints = (complaints + part).slice(-65_536);
    });
    child.on("error", reject);
    child.on("close", (code, signal) => {
      if (signal !== null) reject(new Error(`${file} did not end within ${PATIENCE / 1000} s`));
      // JSON stays JSON: an error is part of it.
      else resolve(code === 0 || text.startsWith("{") ? text : `${text}exit code ${code}\n${complaints}`);
    });
  });
}
