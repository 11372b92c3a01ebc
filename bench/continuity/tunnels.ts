/**
 * Two machines' tunnels: the one of the machine where the bench plays, and the one of a machine with peers that demand
 * mutual TLS, a network namespace of its own. This process plays systemd for both (unit.c).
 */
import {
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { readCertificate } from "../../src/istiod/identity/certificate.ts";
import { unpin } from "../../src/kernel/bpffs.ts";
import { identityStore } from "../../src/machine/identity-store.ts";
import type { Inbound } from "../../src/mesh/inbound.ts";
import { readTunnels, type TunnelStatus } from "../../src/tunnel/process/status-file.ts";
import { lives } from "../../src/tunnel/process/successor.ts";
import { TestMesh } from "../../test/lab/mesh-member.ts";
import { eventually, output, sleep } from "../../test/lab/process.ts";
import type { Build } from "./builds.ts";
import { monotonic } from "./clock.ts";
import type { Crash } from "./ledger/book.ts";
import { ENDPOINT_PORT, PEERS } from "./plan.ts";
import { Talker } from "./talker.ts";

export const SIDES = ["apps", "peers"] as const;
/** Whose tunnel: that of the apps that connect, or that of their peers. */
export type Side = (typeof SIDES)[number];

/** RestartSec of kmesh-tunnel.service, milliseconds. */
const RESTART_AFTER = 200;
/** How long a tunnel may take to accept, milliseconds. */
const PATIENCE = 20_000;
/** Connections that may come between a look and the end of what is looked at. */
const UNSEEN = 16;
const ACCOUNTS = { apps: "app", peers: "web", impostor: "bank" } as const;

export interface TunnelsOptions {
  folder: string;
  /** Files of builds, by name. */
  copy(build: string): string;
  /** Of this machine. */
  bpffs: string;
  state: string;
  runDir: string;
  /** For the pins of the peers' machine. */
  peersBpffs: string;
  cgroup: string;
  /** The program of unit.c. */
  unit: string;
  log(name: string): string;
}

export class Tunnels {
  readonly mesh = new TestMesh();
  readonly #options: TunnelsOptions;
  readonly #units = new Map<Side, Talker>();
  #machine: Talker | undefined;
  /** Of the peers' machine. */
  netns = "";
  /** The build that the next tunnel will be. */
  installed: Build = "own";

  constructor(options: TunnelsOptions) {
    this.#options = options;
  }

  /** SPIFFE ids: of the peers, and of somebody else. */
  get identities(): { peer: string; other: string } {
    return { peer: this.mesh.id(ACCOUNTS.peers), other: this.mesh.id(ACCOUNTS.impostor) };
  }

  /** Makes the peers' machine with these addresses, where mutual TLS is demanded. */
  async buildMachine(addresses: readonly string[]): Promise<void> {
    const { log, peersBpffs } = this.#options;
    this.#machine = new Talker(
      "the peers' machine",
      ["unshare", "--net", "sh", "-c", "echo $$; exec cat"],
      log("machine"),
    );
    const pid = await this.#machine.hear();
    this.netns = `/proc/${pid}/ns/net`;
    const inside = (...command: string[]) => output(command, { netns: this.netns });
    await output(["ip", "link", "add", "apps", "type", "veth", "peer", "name", "peers", "netns", pid]);
    await output(["ip", "addr", "add", `${PEERS}.0.1/16`, "dev", "apps"]);
    await output(["ip", "link", "set", "apps", "up"]);
    await inside("ip", "link", "set", "lo", "up");
    for (const address of addresses) await inside("ip", "addr", "add", `${address}/16`, "dev", "peers");
    await inside("ip", "link", "set", "peers", "up");
    // Addresses of an interface that does not run yet are not seen.
    await eventually("the peers' interface runs", async () =>
      (await inside("ip", "link", "show", "peers")).includes("state UP"),
    );
    const policies: Inbound = {
      ports: [ENDPOINT_PORT],
      mtls: { default: "strict", ports: [] },
      policies: [],
    };
    const publisher = join(import.meta.dirname, "../../test/inbound/publisher.ts");
    await inside(process.execPath, publisher, peersBpffs, "leave", JSON.stringify(policies));
  }

  /** Starts both tunnels. */
  async start(build: Build): Promise<void> {
    this.install(build);
    for (const side of SIDES) {
      this.renewCertificate(side);
      const sockets =
        side === "apps"
          ? ["outbound,0.0.0.0,15001,lo"]
          : ["hbone,0.0.0.0,15008", "inbound,127.0.0.1,15006", "inbound6,::1,15006"];
      const command = [
        this.#executable,
        "tunnel",
        `--bpffs=${side === "apps" ? this.#options.bpffs : this.#options.peersBpffs}`,
        `--state-dir=${this.#state(side)}`,
        `--run-dir=${this.#runDir(side)}`,
      ];
      const unit = new Talker(
        `the unit of the ${side}' tunnel`,
        [this.#options.unit, ...sockets, "--", ...command],
        this.#log(side),
        { cgroup: this.#options.cgroup, ...(side === "peers" && { netns: this.netns }) },
      );
      this.#units.set(side, unit);
      await unit.hear();
      await this.#startUnit(side);
    }
  }

  /** Puts a build into place by rename. What runs is not touched. */
  install(build: Build): void {
    this.#put(this.#options.copy(build));
    this.installed = build;
  }

  #put(file: string): void {
    linkSync(file, `${this.#executable}.put`);
    renameSync(`${this.#executable}.put`, this.#executable);
  }

  /** What the agent does when istiod has given it another certificate. */
  renewCertificate(side: Side): void {
    const { key, cert, ca } = this.mesh.issue(ACCOUNTS[side]);
    identityStore(this.#state(side)).save(readCertificate(key, cert, ca));
  }

  /** Those that run: the one that accepts, then those that drain. */
  statuses(side: Side): TunnelStatus[] {
    return readTunnels(this.#runDir(side));
  }

  /** Resident memory of the tunnels that accept, KiB. */
  memory(): Record<string, number> {
    return Object.fromEntries(
      SIDES.map((side) => [`the ${side}' tunnel`, residentMemory(this.#accepting(side).pid)]),
    );
  }

  /** As `systemctl reload kmesh-tunnel`: resolves when the next one accepts and this one drains. Gives how long that took, ms. */
  async restart(side: Side): Promise<number> {
    const { pid } = this.#accepting(side);
    const began = performance.now();
    process.kill(pid, "SIGHUP");
    await this.#eventually(side, "the next tunnel accepts and this one drains", () => {
      const all = this.statuses(side);
      const before = all.find((status) => status.pid === pid);
      return all.some((status) => status.pid !== pid && !status.draining) && (before?.draining ?? true);
    });
    return performance.now() - began;
  }

  /** Asks for a restart while the file that would start is none: resolves when the tunnel has said that it goes on. */
  async failRestart(side: Side): Promise<void> {
    const { pid } = this.#accepting(side);
    const { installed } = this;
    const broken = this.#options.copy("no-tunnel");
    writeFileSync(broken, "#!/bin/sh\nexit 1\n", { mode: 0o755 });
    this.#put(broken);
    const refusals = () => this.#text(side).split("No hand-over").length;
    const before = refusals();
    process.kill(pid, "SIGHUP");
    await this.#eventually(side, "the tunnel says that no other came up", () => refusals() > before);
    this.install(installed);
    if (this.#accepting(side).pid !== pid) throw new Error(`the tunnel ${pid} does not accept any more`);
  }

  /**
   * SIGKILL of the tunnel that accepts, and a start as by systemd. Gives what that may cut, and the milliseconds from its end
   * to the next one's first accept.
   */
  async crash(side: Side): Promise<{ crash: Crash; gap: number }> {
    const { pid } = this.#accepting(side);
    // Its status is a second old, or older where the processor is busy. Each connection has a socket of its own, at least.
    const most = socketsOf(pid) + UNSEEN;
    const from = monotonic();
    process.kill(pid, "SIGKILL");
    await eventually("the tunnel is gone", () => !lives(pid), 5_000, 1);
    const to = monotonic();
    await sleep(RESTART_AFTER);
    await this.#startUnit(side);
    return { crash: { from, to, most }, gap: (monotonic() - from) / 1e6 };
  }

  /** Ends everything but what is in the cgroup. */
  async remove(): Promise<void> {
    for (const talker of [...this.#units.values(), this.#machine]) await talker?.end();
    unpin(this.#options.peersBpffs);
    this.mesh.close();
  }

  async #startUnit(side: Side): Promise<void> {
    const pid = Number((await this.#units.get(side)?.ask("start"))?.split(" ")[1]);
    await this.#eventually(side, "the tunnel accepts", () =>
      this.statuses(side).some((status) => status.pid === pid && status.listening.length > 0),
    );
  }

  #accepting(side: Side): TunnelStatus {
    const [status] = this.statuses(side);
    if (!status || status.draining) throw new Error(`no tunnel of the ${side} accepts\n${this.#tail(side)}`);
    return status;
  }

  async #eventually(side: Side, what: string, check: () => boolean): Promise<void> {
    await eventually(what, check, PATIENCE, 2).catch((error: Error) => {
      throw new Error(`${error.message}\n${this.#tail(side)}`);
    });
  }

  #text(side: Side): string {
    return readFileSync(this.#log(side), "utf8");
  }

  #tail(side: Side): string {
    return this.#text(side).trimEnd().split("\n").slice(-10).join("\n");
  }

  get #executable(): string {
    return join(this.#options.folder, "bin", "kmesh-tunnel");
  }

  #state(side: Side): string {
    return side === "apps" ? this.#options.state : this.#folder("peers-state");
  }

  #runDir(side: Side): string {
    return side === "apps" ? this.#options.runDir : this.#folder("peers-run");
  }

  #folder(name: string): string {
    const folder = join(this.#options.folder, name);
    mkdirSync(folder, { recursive: true });
    return folder;
  }

  #log(side: Side): string {
    return this.#options.log(`tunnel-${side}`);
  }
}

/** How many sockets the process has. Throws the file system's error when it has ended. */
function socketsOf(pid: number): number {
  const folder = `/proc/${pid}/fd`;
  const targets = readdirSync(folder).map((fd) => {
    try {
      return readlinkSync(join(folder, fd));
    } catch {
      return "closed meanwhile";
    }
  });
  return targets.filter((target) => target.startsWith("socket:")).length;
}

/** KiB; 0 when the process has ended. */
export function residentMemory(pid: number): number {
  try {
    return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1] ?? 0);
  } catch {
    return 0;
  }
}
