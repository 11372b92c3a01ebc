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
import { Talker } from "./talker.ts";

const PYTHON = "/usr/bin/python3";
/** An entry of admission.py: began and ended (ns), source, port, errno. */
const ENTRY = 24;

export interface AdmissionSums {
  admitted: number;
  refused: number;
  wronglyAdmitted: number;
  wronglyRefused: number;
  /** Neither an answer nor ECONNREFUSED. */
  failed: number;
}

/** The host, its client, and the machine's servers. `end` removes them. */
export class AdmissionLoad {
  readonly ledger: string;
  #host: NetworkNamespace | undefined;
  #server: Talker | undefined;
  #client: Talker | undefined;
  readonly #folder: string;

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
  }

  /** Starts the servers and the client; its connections begin with `go`. */
  async start(): Promise<void> {
    if (!this.#host) throw new Error("there is no host yet");
    const log = (name: string) => join(this.#folder, `${name}.log`);
    const serve = join(import.meta.dirname, "../../test/inbound/peers.py");
    this.#server = new Talker(
      "the machine's servers",
      [PYTHON, serve, "serve", ...PORTS.map(String)],
      log("inbound-servers"),
    );
    await this.#server.hear();
    const script = join(import.meta.dirname, "admission.py");
    const lists = [SOURCES.join(), MACHINE.join(), PORTS.join()];
    this.#client = new Talker("the host", [PYTHON, script, this.ledger, ...lists], log("inbound-client"), {
      netns: this.#host.path,
    });
    await this.#client.hear();
  }

  /** `pause`: the ledger is whole when this resolves. */
  async say(word: "go" | "pause" | "end"): Promise<void> {
    await this.#client?.ask(word, 30_000);
  }

  /** Ends the processes and removes the host. */
  async end(): Promise<void> {
    await this.#client?.end();
    await this.#server?.end();
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
