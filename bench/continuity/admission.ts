/**
 * Connections to the machine, from another host (a network namespace behind a link) with many addresses: some that policy
 * admits and some that it refuses, all the time. Each outcome is compared with the plan.
 */
import { constants } from "node:os";
import { join } from "node:path";
import { readRefusals } from "../../src/inbound/refusals.ts";
import { openPolicySet } from "../../src/policy/pinned.ts";
import { NetworkNamespace, ownName } from "../../test/lab/namespace.ts";
import { output } from "../../test/lab/process.ts";
import { type AdmissionPlan, MACHINE, PORTS, SOURCES } from "./admission-plan.ts";
import type { Accepted } from "./ledger/kernel-counts.ts";
import { Talker } from "./talker.ts";

const PYTHON = "/usr/bin/python3";
/** An entry of admission.py: began and ended (ns), source, port, errno. */
const ENTRY = 24;
/** Of the answers to one of the sources, one in so many is lost. */
const LOST = 50;

export interface AdmissionSums {
  admitted: number;
  refused: number;
  wronglyAdmitted: number;
  wronglyRefused: number;
  /** Neither an answer nor ECONNREFUSED. */
  failed: number;
}

/** The host, its client, and the machine's app. `end` removes them. */
export class AdmissionLoad {
  readonly ledger: string;
  #host: NetworkNamespace | undefined;
  #app: Talker | undefined;
  #client: Talker | undefined;
  readonly #folder: string;
  /** What the app has accepted so far on ports whose connections are counted. */
  accepted: Accepted[] = [];

  constructor(folder: string) {
    this.#folder = folder;
    this.ledger = join(folder, "admission");
  }

  /** Links the host and this network namespace. */
  async link(): Promise<void> {
    const host = await NetworkNamespace.create("h");
    this.#host = host;
    const [near, far] = [ownName("a"), ownName("b")];
    await output(["ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", host.name]);
    for (const address of MACHINE) await output(["ip", ...addTo(address, near)]);
    for (const address of SOURCES) await host.ip(...addTo(address, far));
    await output(["ip", "link", "set", near, "up"]);
    await host.ip("link", "set", far, "up");
    await this.#lose(host);
  }

  /** Has some of the app's answers to the last source lost: the kernel sends them again. */
  async #lose(host: NetworkNamespace): Promise<void> {
    const rule = `ip6 daddr ${SOURCES.at(-1)} tcp sport ${PORTS[0]} meta length > 200 numgen inc mod ${LOST} == 0 drop`;
    const chain = "{ type filter hook input priority 0; }";
    for (const command of [
      "add table inet loss",
      `add chain inet loss in ${chain}`,
      `add rule inet loss in ${rule}`,
    ])
      await output(["nft", command], { netns: host.path });
  }

  /** Starts the app, in a cgroup, and the client; its connections begin with `go`. */
  async start(cgroup: string): Promise<void> {
    if (!this.#host) throw new Error("there is no host yet");
    const log = (name: string) => join(this.#folder, `${name}.log`);
    const app = join(import.meta.dirname, "machine-app.py");
    this.#app = new Talker("the machine's app", [PYTHON, app, ...PORTS.map(String)], log("machine-app"), {
      cgroup,
    });
    await this.#app.hear();
    const script = join(import.meta.dirname, "admission.py");
    const lists = [SOURCES.join(), MACHINE.join(), PORTS.join()];
    this.#client = new Talker("the host", [PYTHON, script, this.ledger, ...lists], log("inbound-client"), {
      netns: this.#host.path,
    });
    await this.#client.hear();
  }

  /** `pause`, `end`: the ledger is whole when this resolves, and `accepted` is what the app has counted. */
  async say(word: "go" | "pause" | "end"): Promise<void> {
    const open = (await this.#client?.ask(word, 30_000))?.split(" ")[1];
    if (word === "go" || open === undefined) return;
    const tallies: Accepted[] = JSON.parse((await this.#app?.ask(`settled ${open}`)) ?? "[]");
    // istiod knows of no service at the last port, so its connections are not counted.
    this.accepted = tallies.filter(({ port }) => port !== PORTS.at(-1));
  }

  /** Ends the processes and removes the host. */
  async end(): Promise<void> {
    await this.#client?.end();
    await this.#app?.end();
    await this.#host?.remove();
  }
}

/** Judges the ledger. */
export class AdmissionBook {
  readonly sums: AdmissionSums = {
    admitted: 0,
    refused: 0,
    wronglyAdmitted: 0,
    wronglyRefused: 0,
    failed: 0,
  };
  readonly #plan: AdmissionPlan;
  readonly #complain: (text: string) => void;

  constructor(plan: AdmissionPlan, complain: (text: string) => void) {
    this.#plan = plan;
    this.#complain = complain;
  }

  /** Reads new entries. Throws RangeError when they are not whole. */
  take(bytes: Uint8Array): void {
    if (bytes.length % ENTRY !== 0) throw new RangeError(`${bytes.length} bytes are no entries of ${ENTRY}`);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let at = 0; at < bytes.length; at += ENTRY) {
      const [began, ended] = [view.getBigUint64(at, true), view.getBigUint64(at + 8, true)].map(Number);
      const [source, port, error] = [16, 18, 20].map((offset) => view.getUint16(at + offset, true));
      this.#judge(source ?? 0, port ?? 0, error ?? 0, began ?? 0, ended ?? 0);
    }
  }

  #judge(source: number, port: number, error: number, began: number, ended: number): void {
    const what = () => `a connection from ${SOURCES[source]} to port ${PORTS[port]}`;
    if (error !== 0 && error !== constants.errno.ECONNREFUSED) {
      this.sums.failed++;
      this.#complain(`${what()} failed: errno ${error}`);
      return;
    }
    const admitted = error === 0;
    this.sums[admitted ? "admitted" : "refused"]++;
    const verdict = this.#plan.verdict(source, port, began, ended);
    if (verdict === "either" || admitted === (verdict === "admit")) return;
    this.sums[admitted ? "wronglyAdmitted" : "wronglyRefused"]++;
    this.#complain(`${what()} was ${admitted ? "admitted" : "refused"} against the policy`);
  }
}

/** The kernel's counters of refused peers, in all. Throws KernelError. */
export function refusalsOf(bpffs: string): number {
  return (readRefusals(bpffs)?.refusals ?? []).reduce((sum, { count }) => sum + count, 0);
}

/** How the pinned policies differ from the plan. Throws KernelError. */
export function admissionDifference(bpffs: string, plan: AdmissionPlan): string | undefined {
  using set = openPolicySet(bpffs);
  const judge = set?.current();
  if (!judge) return "no inbound policies are pinned";
  for (const [source, sourceAddress] of SOURCES.entries()) {
    const destinationAddress = MACHINE[sourceAddress.includes(":") ? 1 : 0];
    for (const [port, destinationPort] of PORTS.entries()) {
      const { allowed } = judge.decide({ sourceAddress, destinationAddress, destinationPort });
      if (allowed !== plan.admits(source, port))
        return `the pinned policies ${allowed ? "admit" : "refuse"} ${sourceAddress} at port ${destinationPort}`;
    }
  }
  return undefined;
}

function addTo(address: string, device: string): string[] {
  const v6 = address.includes(":");
  return ["addr", "add", `${address}/${v6 ? 64 : 24}`, "dev", device, ...(v6 ? ["nodad"] : [])];
}
