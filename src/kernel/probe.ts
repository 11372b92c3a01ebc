/** A child process that connects where it is told to, in a cgroup of its own (native/probe.c). */
import { constants } from "node:fs";
import { cString } from "../runtime/ffi.ts";
import { check, KernelError } from "./error.ts";
import { native } from "./native.ts";

const KIND = { connect: 1, close: 2 } as const;
const STAGES = ["", "moving into the cgroup", "socket", "connect", "accept", "first bytes", "getpeername"] as const;
const ADDRESS = 16;

/** What became of a connection. */
export type ProbeOutcome =
  | {
      ok: true;
      /** What getpeername() said: 16 bytes, IPv4 as v4-mapped. */
      peer: Uint8Array;
      port: number;
    }
  /** Where it failed, and the errno; 0 when other bytes arrived than were sent. */
  | { ok: false; stage: string; errno: number };

/** Listens on a port of loopback that the kernel has chosen. The owner closes it. */
export class LoopbackListener {
  readonly port: number;
  #fd: number;

  private constructor(fd: number, port: number) {
    this.#fd = fd;
    this.port = port;
  }

  /** On 127.0.0.1 or ::1. Throws KernelError: EADDRNOTAVAIL or EAFNOSUPPORT where the family is off. */
  static open(family: "v4" | "v6"): LoopbackListener {
    const port = new Uint32Array(new ArrayBuffer(4));
    const fd = native().kmesh_listen_loopback(family === "v6" ? 1 : 0, port);
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

/** Its owner ends it; it also ends with this process, however that goes. */
export class ProbeChild {
  readonly pid: number;
  readonly #control: number;
  #ended = false;

  private constructor(pid: number, control: number) {
    this.pid = pid;
    this.#control = control;
  }

  /**
   * Starts it in the cgroup2 folder `cgroup`, or in this process's own. Listeners are to be opened before.
   * Throws KernelError.
   */
  static start(cgroup: string | undefined): ProbeChild {
    const lib = native();
    const control = new Int32Array(new ArrayBuffer(4));
    const folder =
      cgroup === undefined
        ? -1
        : check(lib.kmesh_open(cString(cgroup), constants.O_RDONLY | constants.O_DIRECTORY, 0), "open", cgroup);
    try {
      const pid = check(lib.kmesh_probe_start(folder, control), "clone", "probe");
      const child = new ProbeChild(pid, control[0] ?? -1);
      const began = child.#order(undefined);
      if (began.ok) return child;
      child.end();
      throw new KernelError("write", began.errno, `${cgroup}/cgroup.procs`);
    } finally {
      if (folder >= 0) lib.kmesh_close(folder);
    }
  }

  /**
   * Connects to 16 bytes of address (IPv4 as v4-mapped, which makes an IPv4 socket when `family` says so) and expects to
   * be led to `listener`, from where bytes are sent through. The connection stays until the next order. At most 4 s.
   * Throws KernelError when the child does not answer.
   */
  connect(family: "v4" | "v6", address: Uint8Array, port: number, listener: LoopbackListener): ProbeOutcome {
    const order = new Uint8Array(new ArrayBuffer(16 + ADDRESS));
    new Int32Array(order.buffer).set([KIND.connect, family === "v6" ? 1 : 0, port, listener.fd]);
    order.set(address, 16);
    return this.#order(order);
  }

  /** Closes the connection that it has. */
  disconnect(): void {
    const order = new Uint8Array(new ArrayBuffer(16 + ADDRESS));
    new Int32Array(order.buffer)[0] = KIND.close;
    this.#order(order);
  }

  end(): void {
    if (!this.#ended) native().kmesh_probe_end(this.pid, this.#control);
    this.#ended = true;
  }

  #order(order: Uint8Array | undefined): ProbeOutcome {
    const outcome = new Uint8Array(new ArrayBuffer(16 + ADDRESS));
    check(native().kmesh_probe_order(this.#control, order ?? null, outcome), "recv", `probe ${this.pid}`);
    const [stage = 0, errno = 0, port = 0] = new Int32Array(outcome.buffer);
    if (stage !== 0) return { ok: false, stage: STAGES[stage] ?? `stage ${stage}`, errno };
    return { ok: true, peer: outcome.slice(16), port };
  }
}
