/**
 * A machine with a systemd of its own: a container that is booted on an overlay over a small Debian. It has a network of
 * its own and its own view of cgroups, so the programs hang below the container, not on this machine's root.
 */
import { spawnSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { stringify } from "yaml";
import { identityStore } from "../../src/machine/identity-store.ts";
import { missing as missingForKmesh } from "../e2e/agent-lab.ts";
import { KMESH } from "../interop/mesh-lab.ts";
import { listLinks } from "../lab/bpftool.ts";
import type { TestMesh } from "../lab/mesh-member.ts";
import { ownName, TestCgroup } from "../lab/namespace.ts";
import { eventually, OwnedProcess, output, type Place, type RunResult, run, sleep } from "../lab/process.ts";

export const SERVICE = "10.96.0.10";
/** A service port of the machine that demands mutual TLS. */
export const STRICT_PORT = 8443;
const UPSTREAM = "127.1.0.1";

/**
 * Connects to the service again and again, and keeps the last answer: there is none without the mesh. Refused is who was
 * redirected before the upstream was there.
 */
const ASK = `#!/bin/bash
while true; do
  if { exec 3<>/dev/tcp/${SERVICE}/80; } 2>/run/$1.error; then
    echo "$1" >&3
    head -n1 <&3 >/run/$1.new
    mv /run/$1.new /run/$1.answer
    exec 3>&-
  elif ! grep -q refused /run/$1.error; then
    touch /run/$1.outside
  fi
  sleep 0.1
done
`;

/** The small Debian, fetched where it is not there yet. `missing` says why no machine can be booted here. */
export function fetchRoot(): { root: string; missing: string | undefined } {
  const { status, stdout, stderr } = spawnSync(join(import.meta.dirname, "fetch"), { encoding: "utf8" });
  const failure = status === 0 ? undefined : (stderr.trim().split("\n").at(-1) ?? "fetch failed");
  return { root: stdout.trim(), missing: missingForKmesh() ?? failure };
}

export class SystemdMachine {
  readonly bpffs: string;
  readonly #root: string;
  readonly #folder: string;
  /** What the container makes for itself lies below it. */
  #cgroup: TestCgroup | undefined;
  #processes: OwnedProcess[] = [];
  #init = 0;

  private constructor(root: string) {
    this.#root = root;
    this.bpffs = `/sys/fs/bpf/${ownName("sd")}`;
    this.#folder = mkdtempSync(join(tmpdir(), "kmesh-systemd-"));
    for (const part of ["upper", "work", "root"]) mkdirSync(join(this.#folder, part));
  }

  /**
   * Boots `root` (it is not written to), with a control plane and an upstream in its network. `installed`: kmesh was
   * installed into it before the boot, as into an image.
   */
  static async boot(root: string, installed = false): Promise<SystemdMachine> {
    const machine = new SystemdMachine(root);
    try {
      if (installed) {
        const upper = join(machine.#folder, "upper");
        await output([KMESH, "install", `--root=${upper}`]);
        writeFileSync(join(upper, "etc/kmesh/config.yaml"), machine.#settings());
      }
      await machine.#boot();
      return machine;
    } catch (error) {
      await machine.remove();
      throw error;
    }
  }

  /** Runs a command inside, as root, in its namespaces. */
  run(...command: string[]): Promise<RunResult> {
    return run(this.#inside(command), { timeoutMs: 60_000 });
  }

  /** The same; throws unless it exits with 0. */
  output(...command: string[]): Promise<string> {
    return output(this.#inside(command), { timeoutMs: 60_000 });
  }

  /** Runs one of this machine's commands in the other's network. Throws unless it exits with 0. */
  network(...command: string[]): Promise<string> {
    return output(command, { netns: `/proc/${this.#init}/ns/net` });
  }

  /** The namespace of its network. */
  get netns(): string {
    return `/proc/${this.#init}/ns/net`;
  }

  /** Gives it a certificate of the mesh, as its agent would get one from istiod. */
  enrolIn(mesh: TestMesh, account: string): void {
    const root = `/proc/${this.#init}/root`;
    const store = identityStore(
      `${root}/var/lib/kmesh`,
      readFileSync(`${root}/etc/machine-id`, "utf8").trim(),
    );
    mesh.renew(store, account);
  }

  /** The executable that was built, as somebody who wants to install it has it. */
  get download(): string {
    return "/mnt/kmesh";
  }

  /** A property of kmesh.service, or of another unit. */
  async property(name: string, unit = "kmesh.service"): Promise<string> {
    return (await this.output("systemctl", "show", "--value", `--property=${name}`, unit)).trim();
  }

  /** Waits until a property is as wanted, and gives it. */
  until(name: string, fits: (value: string) => boolean): Promise<string> {
    let last = "";
    return eventually(
      `kmesh.service has the ${name} that is waited for`,
      async () => {
        last = await this.property(name);
        return fits(last) && last;
      },
      20_000,
      200,
    ).catch(async (error: Error) => {
      throw new Error(`${error.message}; it is ${last}\n${await this.journal()}`);
    });
  }

  journal(): Promise<string> {
    return this.output("journalctl", "--unit=kmesh.service", "--no-pager", "--output=cat");
  }

  /** Writes a file inside. */
  write(path: string, text: string): void {
    writeFileSync(`/proc/${this.#init}/root${path}`, text);
  }

  /** Copies an executable of this machine into the other. */
  put(path: string, source: string): void {
    copyFileSync(source, `/proc/${this.#init}/root${path}`);
  }

  exists(path: string): boolean {
    return existsSync(`/proc/${this.#init}/root${path}`);
  }

  configure(more: object = {}): void {
    this.write("/etc/kmesh/config.yaml", this.#settings(more));
  }

  /**
   * Down and up again: its files stay, the kernel holds nothing of before. `until` "starting": what is started at boot may
   * still be waiting.
   */
  async reboot(until?: "starting"): Promise<void> {
    await this.#halt();
    await this.#boot(until);
  }

  /** Whether an application, a unit of its own, reaches the service: without the mesh there is no way to it. */
  async governs(): Promise<boolean> {
    const script = `exec 3<>/dev/tcp/${SERVICE}/80 && echo hello >&3 && head -n1 <&3`;
    const result = await this.run("systemd-run", "--quiet", "--wait", "--pipe", "bash", "-c", script);
    return result.stdout === "shop hello\n";
  }

  /** Services that use the service all the time, from their first moment on; enabled at boot, and not started. */
  async addApplications(...names: string[]): Promise<void> {
    this.write("/usr/local/bin/ask", ASK);
    await this.output("chmod", "+x", "/usr/local/bin/ask");
    for (const name of names) {
      const lines = [
        "[Service]",
        `ExecStart=/usr/local/bin/ask ${name}`,
        "[Install]",
        "WantedBy=multi-user.target",
      ];
      this.write(`/etc/systemd/system/${name}.service`, lines.join("\n"));
    }
    await this.output("systemctl", "daemon-reload");
    await this.output("systemctl", "enable", ...names);
  }

  /** Whether such an application's connections are redirected from now on. They are when it says so within 10 s. */
  async answered(name: string): Promise<boolean> {
    await this.output("rm", "-f", `/run/${name}.answer`);
    return eventually(`${name} has an answer`, () => this.exists(`/run/${name}.answer`), 10_000).then(
      async () => (await this.output("cat", `/run/${name}.answer`)) === `shop ${name}\n`,
      () => false,
    );
  }

  /** Whether none of its connections came through for half a second. */
  async unanswered(name: string): Promise<boolean> {
    await this.output("rm", "-f", `/run/${name}.answer`);
    await sleep(500);
    return !this.exists(`/run/${name}.answer`);
  }

  /** Whether any of its connections ever was outside the mesh, since it started first or since this was last asked. */
  async wasOutside(name: string): Promise<boolean> {
    const outside = this.exists(`/run/${name}.outside`);
    await this.output("rm", "-f", `/run/${name}.outside`);
    return outside;
  }

  /** Ids of the links by hook, as they are pinned. */
  async links(): Promise<Record<string, number>> {
    const own = (await listLinks()).flatMap(({ id, pinned }) =>
      (pinned ?? [])
        .filter((path) => path.startsWith(`${this.bpffs}/links/`))
        .map((path) => [path.slice(path.lastIndexOf("/") + 1), id] as const),
    );
    return Object.fromEntries(own);
  }

  /** Ends and removes all of it. Gives what is left. */
  async remove(): Promise<string[]> {
    await this.#halt();
    rmSync(this.#folder, { recursive: true, force: true });
    return [this.bpffs, this.#folder].filter((path) => existsSync(path));
  }

  async #halt(): Promise<void> {
    for (const each of this.#processes.reverse()) await each.stop("SIGTERM", 20_000);
    this.#processes = [];
    await this.#cgroup?.remove();
    this.#cgroup = undefined;
    // Pins belong to this machine's bpffs, and outlive the container.
    rmSync(this.bpffs, { recursive: true, force: true });
  }

  #settings(more: object = {}): string {
    const own = { istiod: "127.0.0.1:15010", plaintext: true, ip: "172.31.0.1", bpffs: this.bpffs };
    return stringify({ ...own, ...more });
  }

  async #boot(until?: "starting"): Promise<void> {
    const [upper, work, root] = ["upper", "work", "root"].map((part) => join(this.#folder, part));
    const overlay = `mount -t overlay overlay -o lowerdir=${this.#root},upperdir=${upper},workdir=${work} ${root}`;
    this.#cgroup = TestCgroup.create("sd");
    const command = [
      // In a mount namespace of its own: the overlay goes when the container does.
      ...["unshare", "--mount", "sh", "-c", `${overlay} && exec "$@"`, "sh"],
      ...["systemd-nspawn", "--quiet", `--directory=${root}`, "--boot"],
      ...["--register=no", "--keep-unit", "--private-network", `--machine=${ownName("sd")}`],
      // A whole machine may do these; by default a container may not.
      ...["--capability=all", "--system-call-filter=bpf open_by_handle_at"],
      ...["--bind=/sys/fs/bpf", `--bind-ro=${dirname(KMESH)}:/mnt`],
    ];
    const container = this.#start("systemd", command, { cgroup: this.#cgroup.path });
    this.#init = await eventually("systemd is the first process", () => {
      if (container.status !== undefined) throw new Error(container.tail());
      return childOf(container.pid);
    });
    await eventually(
      "the machine is up",
      async () => {
        const { stdout } = await this.run("systemctl", "is-system-running");
        return ["running", "degraded", until].includes(stdout.trim());
      },
      60_000,
      300,
    ).catch((error: Error) => {
      throw new Error(`${error.message}\n${container.tail()}`);
    });
    await this.#helper(
      "upstream",
      "../interop/upstream.ts",
      `shop=${UPSTREAM}:8080`,
      `own=0.0.0.0:${STRICT_PORT}`,
    );
    const mesh = {
      services: [
        {
          host: "shop.demo.svc.cluster.local",
          addresses: [SERVICE],
          port: 80,
          protocol: "tcp",
          balance: "round-robin",
          endpoints: [{ address: UPSTREAM, port: 8080, subset: "v1" }],
        },
      ],
      inbound: [{ port: STRICT_PORT, mtls: "strict" }],
    };
    const file = join(this.#folder, "mesh.yaml");
    writeFileSync(file, stringify(mesh));
    await this.#helper("control-plane", "../e2e/control-plane.ts", file, "15010");
  }

  /** A script of this machine in the network of the other. */
  async #helper(name: string, script: string, ...args: string[]): Promise<void> {
    const command = [process.execPath, join(import.meta.dirname, script), ...args];
    const started = this.#start(name, command, { netns: `/proc/${this.#init}/ns/net` });
    await eventually(`${name} is ready`, () => {
      if (started.status !== undefined) throw new Error(started.tail());
      return started.output().includes("ready");
    });
  }

  #start(name: string, command: string[], place: Place): OwnedProcess {
    const started = new OwnedProcess({ name, log: join(this.#folder, `${name}.log`), command, ...place });
    this.#processes.push(started);
    return started;
  }

  #inside(command: readonly string[]): string[] {
    return ["nsenter", `--target=${this.#init}`, "--all", "--", ...command];
  }
}

/** The child of a process that is the first of its own pid namespace. */
function childOf(parent: number): number | undefined {
  const children = readFileSync(`/proc/${parent}/task/${parent}/children`, "utf8").split(" ").filter(Boolean);
  return children
    .map(Number)
    .find((pid) => /^NSpid:\s+\d+\s+1$/m.test(readFileSync(`/proc/${pid}/status`, "utf8")));
}
