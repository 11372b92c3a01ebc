/** Another machine of a lab's mesh: a network namespace behind a veth pair, with an agent and a tunnel of its own. */
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { NetworkNamespace, ownName, TestCgroup } from "../lab/namespace.ts";
import { eventually, OwnedProcess, output, run } from "../lab/process.ts";
import { KMESH, type MeshLab, type Tally } from "./mesh-lab.ts";

/** Connections to localhost:PORT go to a unix socket, behind which is istiod. */
const TO_ISTIOD = `
const [, port, path] = process.argv;
const { connect, createServer } = require("node:net");
createServer((near) => {
  const far = connect(path);
  near.pipe(far).pipe(near);
  for (const [one, other] of [[near, far], [far, near]]) one.on("error", () => other.destroy()).on("close", () => other.destroy());
}).listen(Number(port), "127.0.0.1", () => console.log("ready"));
`;

/** Starts `kmesh tunnel` on sockets that outlive it. `listeners` are names, joined by commas. */
export async function startTunnel(place: {
  folder: string;
  netns: string;
  flags: readonly string[];
  listeners: string;
}): Promise<OwnedProcess> {
  const { folder, netns, flags, listeners } = place;
  const script = join(import.meta.dirname, "tunnel-holder.py");
  const command = ["/usr/bin/python3", script, listeners, KMESH, "tunnel", ...flags];
  const log = join(folder, "tunnel.log");
  const holder = new OwnedProcess({ name: "tunnel", log, command, netns });
  await eventually("the tunnel accepts", () => holder.output().includes("accepts (pid"));
  return holder;
}

export class SecondMachine {
  readonly namespace: NetworkNamespace;
  readonly apps: string;
  readonly #cgroup: TestCgroup;
  readonly #folder: string;
  readonly #bpffs = `/sys/fs/bpf/${ownName("m")}`;
  readonly #processes: OwnedProcess[] = [];

  private constructor(lab: MeshLab, namespace: NetworkNamespace) {
    this.namespace = namespace;
    this.#cgroup = TestCgroup.create("second");
    this.apps = this.#cgroup.child("apps");
    this.#folder = join(lab.folder, "second");
    mkdirSync(this.#folder);
  }

  /** `here` is the lab's address on the link, `there` this machine's; both with a prefix length. */
  static async create(lab: MeshLab, here: string, there: string): Promise<SecondMachine> {
    const namespace = await NetworkNamespace.create("second");
    const machine = new SecondMachine(lab, namespace);
    await lab.namespace.connect(namespace, [here], [there]);
    const { secureGrpc } = lab.plane.ports;
    const path = join(lab.folder, "istiod.sock");
    await machine.begin("forwarder", "ready", lab.namespace.path, [
      process.execPath,
      join(import.meta.dirname, "../control-plane/forward.ts"),
      `${path}=${secureGrpc}`,
    ]);
    await machine.begin("to istiod", "ready", namespace.path, [
      process.execPath,
      "-e",
      TO_ISTIOD,
      `${secureGrpc}`,
      path,
    ]);
    return machine;
  }

  async begin(name: string, ready: string, netns: string, command: string[]): Promise<OwnedProcess> {
    const log = join(this.#folder, `${name.replaceAll(" ", "-")}.log`);
    const begun = new OwnedProcess({ name, log, command, netns });
    this.#processes.push(begun);
    await eventually(`${name} is ready`, () => {
      if (begun.status !== undefined) throw new Error(begun.tail());
      return begun.output().includes(ready);
    });
    return begun;
  }

  get flags(): string[] {
    return [`--bpffs=${this.#bpffs}`, `--state-dir=${this.#folder}/state`, `--run-dir=${this.#folder}/run`];
  }

  /** Its tunnel and agent. */
  async start(listeners: string, ...flags: string[]): Promise<void> {
    const netns = this.namespace.path;
    this.#processes.push(await startTunnel({ folder: this.#folder, netns, flags: this.flags, listeners }));
    const agent = [
      "--mode=kernel-native",
      "--namespace=shop",
      "--service-account=vm",
      `--cgroup=${this.apps}`,
    ];
    await this.begin("agent", "services are live", netns, [KMESH, "run", ...agent, ...this.flags, ...flags]);
  }

  /** `kmesh COMMAND` with its folders. */
  async kmesh(...command: string[]): Promise<string> {
    return (await run([KMESH, ...command, ...this.flags], { netns: this.namespace.path })).stdout;
  }

  /** Connections of an app: enrolled or not. */
  connect(address: string, port: number, count: number, enrolled = true): Promise<Tally> {
    return this.#connect([], address, port, count, enrolled ? { cgroup: this.apps } : {});
  }

  /** Connections of an app of this group, which is not enrolled: a proxy here may leave its connections alone. */
  connectAs(group: string, address: string, port: number, count: number): Promise<Tally> {
    return this.#connect(["setpriv", "--regid", group, "--clear-groups"], address, port, count, {});
  }

  async #connect(
    by: readonly string[],
    address: string,
    port: number,
    count: number,
    place: { cgroup?: string },
  ): Promise<Tally> {
    const spec = JSON.stringify({ mode: "count", address, port, count, timeout: 5 });
    const script = join(import.meta.dirname, "client.py");
    const text = await output([...by, "/usr/bin/python3", script, spec], {
      netns: this.namespace.path,
      ...place,
    });
    return JSON.parse(text.trim().split("\n").at(-1) ?? "");
  }

  /** Kills its agent and tunnel. */
  async killAll(): Promise<void> {
    for (const each of this.#processes.filter(({ name }) => name === "agent" || name === "tunnel"))
      await each.stop("SIGKILL");
  }

  async remove(): Promise<void> {
    for (const each of this.#processes.reverse()) await each.stop("SIGKILL");
    if (existsSync(this.#bpffs)) await this.kmesh("down", "--yes");
    await this.#cgroup.remove();
    await this.namespace.remove();
  }
}
