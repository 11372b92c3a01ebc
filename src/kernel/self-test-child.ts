/** A child process that opens test connections, in its own cgroup (native/probe.c). */
import { constants } from "node:fs";
import { cString } from "../runtime/ffi.ts";
import { check, KernelError } from "./error.ts";
import { native } from "./native.ts";

const STAGES = [
  "",
  "moving into the cgroup",
  "socket",
  "connect",
  "accept",
  "first bytes",
  "getpeername",
] as const;
const FAMILIES = { v4: 2, v6: 10 } as const;
export type Family = keyof typeof FAMILIES;

/** The result of a test connection. */
export type SelfTestOutcome =
  | {
      ok: true;
      /** The address from getpeername(): 16 bytes, IPv4 as v4-mapped. */
      peer: Uint8Array;
      port: number;
    }
  /** The step that failed, and the reason. `stage` is "connect", "accept", ... */
  | { ok: false; stage: string; reason: string };

/** Listens on a loopback port that the kernel chooses. The owner closes it. */
export class LoopbackListener {
  readonly port: number;
  #fd: number;

  private constructor(fd: number, port: number) {
    this.#fd = fd;
    this.port = port;
  }

  /** On 127.0.0.1 or ::1. Throws KernelError: EADDRNOTAVAIL or EAFNOSUPPORT where the family is off. */
  static open(family: Family): LoopbackListener {
    const port = new Uint32Array(new ArrayBuffer(4));
    const fd = native().kmesh_listen_loopback(FAMILIES[family], port);
    check(fd, "listen", family === "v6" ? "::1" : "127.0.0.1");
    return new LoopbackListener(fd, port[0] ?? 0);
  }

  get fd(): number {
    return this.#fd;
  }

  close(): void {
    if (this.#fd >= 0) native().kmesh_close(this.#fd);
    this.#fd = -1;
  }
}

/** The owner ends it. It also ends when this process ends in any way. It inherits this process's descriptors. */
export class SelfTestChild {
  readonly pid: number;
  readonly #control: number;
  #ended = false;

  private constructor(pid: number, control: number) {
    this.pid = pid;
    this.#control = control;
  }

  /** Starts the child in the cgroup2 folder `cgroup`. Open the listeners before. Throws KernelError. */
  static start(cgroup: string): SelfTestChild {
    const lib = native();
    const control = new Int32Array(new ArrayBuffer(4));
    const folder = check(
      lib.kmesh_open(cString(cgroup), constants.O_RDONLY | constants.O_DIRECTORY, 0),
      "open",
      cgroup,
    );
    try {
      const pid = check(lib.kmesh_probe_start(folder, control), "clone", "probe");
      const child = new SelfTestChild(pid, control[0] ?? -1);
      try {
        const [stage, errno = 0] = child.#order(undefined);
        if (stage !== 0) throw new KernelError("write", errno, `${cgroup}/cgroup.procs`);
        return child;
      } catch (error) {
        child.end();
        throw error;
      }
    } finally {
      lib.kmesh_close(folder);
    }
  }

  /**
   * Connects to 16 bytes of address (IPv4 as v4-mapped, by an IPv4 socket when `family` says so) and expects to be led to
   * `listener`, from where bytes are sent through. The connection stays until the next order. At most 4 s.
   * Throws KernelError when the child does not answer.
   */
  connect(family: Family, address: Uint8Array, port: number, listener: LoopbackListener): SelfTestOutcome {
    const order = new Uint8Array(new ArrayBuffer(32));
    new Int32Array(order.buffer).set([FAMILIES[family], port, listener.fd]);
    order.set(address, 16);
    const outcome = this.#order(order);
    const [stage = 0, errno = 0, peerPort = 0] = outcome;
    if (stage === 0) return { ok: true, peer: new Uint8Array(outcome.buffer).slice(16), port: peerPort };
    const call = STAGES[stage] ?? `stage ${stage}`;
    const reason = errno === 0 ? "other bytes than were sent" : new KernelError(call, errno, "").code;
    return { ok: false, stage: call, reason };
  }

  /** Closes the child's connection. Throws KernelError when the child does not answer. */
  disconnect(): void {
    this.#order(new Uint8Array(new ArrayBuffer(32)));
  }

  end(): void {
    if (!this.#ended) native().kmesh_probe_end(this.pid, this.#control);
    this.#ended = true;
  }

  /** The words of the result: stage, errno, port, 0, and the peer's address. */
  #order(order: Uint8Array | undefined): Int32Array {
    const outcome = new Uint8Array(new ArrayBuffer(32));
    const result = native().kmesh_probe_order(this.#control, order ?? null, outcome);
    check(result, "recv", `probe ${this.pid}`);
    return new Int32Array(outcome.buffer);
  }
}
