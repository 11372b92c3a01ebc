/**
 * A data path without an agent: tables, programs and hooks of the test's own, an enrolled cgroup, a network namespace
 * with servers in it, and clients.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Datapath, type DatapathOptions } from "../../src/datapath/datapath.ts";
import type { Code } from "../../src/datapath/generation/programs.ts";
import { removePinned } from "../../src/datapath/removal.ts";
import { unpin } from "../../src/kernel/bpffs.ts";
import type { Mesh } from "../../src/mesh/model.ts";
import { type ClientSpec, RunningClient, type Tally } from "../interop/mesh-lab.ts";
import { NetworkNamespace, ownName, TestCgroup } from "../lab/namespace.ts";
import { eventually, OwnedProcess, placed } from "../lab/process.ts";

export class DatapathLab {
  readonly namespace: NetworkNamespace;
  readonly bpffs: string;
  readonly options: DatapathOptions;
  readonly #folder = mkdtempSync(join(tmpdir(), "kmesh-datapath-"));
  readonly #cgroup: TestCgroup;
  readonly #servers: OwnedProcess[] = [];
  #datapath: Datapath;
  /** The cookie of the namespace of the agent; undefined when that is this process's own. */
  #agentIn: bigint | undefined;

  private constructor(namespace: NetworkNamespace, cgroup: TestCgroup, more: Partial<DatapathOptions>) {
    this.namespace = namespace;
    this.#cgroup = cgroup;
    this.bpffs = `/sys/fs/bpf/${ownName("d")}`;
    this.options = {
      bpffs: this.bpffs,
      cgroups: [cgroup.path],
      units: [],
      excludes: [],
      netns: "all",
      shadow: false,
      nodeAddresses: ["172.31.0.1"],
      log: () => undefined,
      ...more,
    };
    this.#datapath = Datapath.open(this.options);
  }

  static async create(more: Partial<DatapathOptions> = {}): Promise<DatapathLab> {
    const namespace = await NetworkNamespace.create("dp");
    const cgroup = TestCgroup.create("dp");
    try {
      return new DatapathLab(namespace, cgroup, more);
    } catch (error) {
      await cgroup.remove();
      await namespace.remove();
      throw error;
    }
  }

  get datapath(): Datapath {
    return this.#datapath;
  }

  get cgroup(): string {
    return this.#cgroup.path;
  }

  /** From now on it is as if the agent, and so its tunnel, ran in this network namespace. */
  async moveAgent(namespace: NetworkNamespace): Promise<void> {
    this.#agentIn = await namespace.cookie();
    this.#datapath.tables.settings.set("netns", this.#agentIn);
  }

  /** Publishes the whole mesh; gives the writes that it took. */
  publish(mesh: Mesh): number {
    return this.#datapath.publish(mesh, { everything: true }).writes;
  }

  /** Closes the data path and opens it again, as another start of an agent would; `code` is what that one would run. */
  reopen(more: Partial<DatapathOptions> = {}, code?: Code): Datapath {
    this.#datapath.close();
    this.#datapath = Datapath.open({ ...this.options, ...more }, code);
    if (this.#agentIn !== undefined) this.#datapath.tables.settings.set("netns", this.#agentIn);
    return this.#datapath;
  }

  /** Starts servers `NAME: ADDRESS:PORT`; their addresses are added to the namespace's loopback. */
  async serve(servers: Record<string, string>): Promise<void> {
    const addresses = new Set(
      Object.values(servers).map((at) => at.replace(/:\d+$/, "").replace(/[[\]]/g, "")),
    );
    await this.namespace.addLoopback(
      ...[...addresses].filter((address) => !address.startsWith("127.") && address !== "::1"),
    );
    const server = new OwnedProcess({
      name: "servers",
      log: join(this.#folder, "servers.log"),
      command: [
        process.execPath,
        join(import.meta.dirname, "../interop/upstream.ts"),
        ...Object.entries(servers).map(([name, at]) => `${name}=${at}`),
      ],
      netns: this.namespace.path,
    });
    this.#servers.push(server);
    await eventually("the servers listen", () => server.output().includes("ready"));
  }

  /** `count` connections of an enrolled app, one after the other. */
  connect(at: string, more: Partial<ClientSpec> = {}, cgroup: string | null = this.cgroup): Promise<Tally> {
    return this.#count(this.#client(at, { mode: "count", ...more }, cgroup));
  }

  /** Connections that stay open until the client's `close`, and what they met. */
  async keep(
    at: string,
    count: number,
    more: Partial<ClientSpec> = {},
  ): Promise<{ client: RunningClient; tally: Tally }> {
    const client = this.#client(at, { mode: "count", keep: true, count, ...more }, this.cgroup);
    return { client, tally: JSON.parse(await client.line()) };
  }

  /** New connections all the time, until the client's `end`. */
  async storm(at: string): Promise<RunningClient> {
    const client = this.#client(at, { mode: "storm", threads: 1 }, this.cgroup);
    await client.line();
    return client;
  }

  async remove(): Promise<void> {
    this.#datapath.close();
    removePinned(this.bpffs);
    // What tests have put in the way lies in aside/, and is nobody else's here.
    unpin(this.bpffs);
    for (const server of this.#servers) await server.stop("SIGKILL");
    await this.#cgroup.remove();
    await this.namespace.remove();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #client(at: string, spec: object, cgroup: string | null): RunningClient {
    const [, address = "", port = ""] = /^\[?(.*?)\]?:(\d+)$/.exec(at) ?? [];
    const script = join(import.meta.dirname, "../interop/client.py");
    const command = ["/usr/bin/python3", script, JSON.stringify({ address, port: Number(port), ...spec })];
    return new RunningClient(
      placed(command, { netns: this.namespace.path, ...(cgroup === null ? {} : { cgroup }) }),
    );
  }

  async #count(client: RunningClient): Promise<Tally> {
    try {
      return JSON.parse(await client.line());
    } finally {
      await client.close();
    }
  }
}
