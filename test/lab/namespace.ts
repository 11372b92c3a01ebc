/** Network namespaces and cgroups that a test makes and removes. */

import { mkdirSync, readdirSync, readFileSync, rmdirSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { isMissing } from "../../src/errors/reason.ts";
import { output, run, sleep } from "./process.ts";

let serial = 0;

/** A name that no other test run uses: short enough for an interface name with four letters after it. */
export function ownName(purpose: string): string {
  serial += 1;
  return `km${process.pid.toString(36)}${serial.toString(36)}${purpose}`.slice(0, 11);
}

/** A named network namespace; `remove` deletes it with every interface in it. */
export class NetworkNamespace {
  readonly name: string;

  private constructor(name: string) {
    this.name = name;
  }

  /** Creates a network namespace whose loopback is up for both families. Needs root. */
  static async create(purpose: string): Promise<NetworkNamespace> {
    const namespace = new NetworkNamespace(ownName(purpose));
    await output(["ip", "netns", "add", namespace.name]);
    await namespace.ip("link", "set", "lo", "up");
    // Or the seventh refused query within seconds would look like one that nobody refuses.
    const unlimited = "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit";
    await output(["nsenter", `--net=${namespace.path}`, "sh", "-c", unlimited]);
    return namespace;
  }

  /** The argument for `nsenter --net=`. `ip netns exec` would hide cgroup2 and bpffs behind a new /sys. */
  get path(): string {
    return `/run/netns/${this.name}`;
  }

  /** The kernel's cookie for it (SO_NETNS_COOKIE). */
  async cookie(): Promise<bigint> {
    const ask = "import socket; print(int.from_bytes(socket.socket().getsockopt(1, 71, 8), 'little'))";
    return BigInt(await output(["/usr/bin/python3", "-c", ask], { netns: this.path }));
  }

  /** Runs `ip ARGS` inside, throws when it fails. */
  async ip(...args: string[]): Promise<void> {
    await output(["ip", "-n", this.name, ...args]);
  }

  /** Adds addresses (host prefix) to loopback, so that servers can bind to them. */
  async addLoopback(...addresses: string[]): Promise<void> {
    for (const address of addresses) {
      const v6 = address.includes(":");
      const extra = v6 ? ["nodad"] : [];
      await this.ip("addr", "add", `${address}/${v6 ? 128 : 32}`, "dev", "lo", ...extra);
    }
  }

  /** Joins this namespace and `other` by a veth pair with one address (with prefix length) a family at each end. */
  async connect(other: NetworkNamespace, here: readonly string[], there: readonly string[]): Promise<void> {
    const near = ownName("a");
    const far = ownName("b");
    await this.ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", other.name);
    for (const [namespace, device, addresses] of [
      [this, near, here],
      [other, far, there],
    ] as const) {
      for (const address of addresses) {
        await namespace.ip(
          "addr",
          "add",
          address,
          "dev",
          device,
          ...(address.includes(":") ? ["nodad"] : []),
        );
      }
      await namespace.ip("link", "set", device, "up");
    }
  }

  /** Removes it. Idempotent. */
  async remove(): Promise<void> {
    await run(["ip", "netns", "delete", this.name]);
  }
}

/** Mount point of the cgroup2 hierarchy, wherever this machine has it. Throws when there is none. */
export function cgroup2Mount(): string {
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    if (after.startsWith("cgroup2 ")) return before.split(" ")[4] ?? "";
  }
  throw new Error("no cgroup2 hierarchy is mounted");
}

/** A cgroup directly below the cgroup2 root, with children made by `child`. */
export class TestCgroup {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /** `suffix` makes the name that of a systemd unit: ".service". */
  static create(purpose: string, suffix = ""): TestCgroup {
    const path = `${cgroup2Mount()}/${ownName(purpose)}${suffix}`;
    mkdirSync(path);
    return new TestCgroup(path);
  }

  /** Creates a cgroup below this one and gives its path; `remove` removes it, too. */
  child(name: string): string {
    const path = `${this.path}/${name}`;
    mkdirSync(path, { recursive: true });
    return path;
  }

  /**
   * Kills the remaining processes inside (all were started there by the test) and removes the whole tree. Idempotent.
   */
  async remove(): Promise<void> {
    await removeCgroup(this.path);
    // systemd-nspawn makes one of the same name in each version 1 hierarchy beside it.
    const mount = cgroup2Mount();
    const beside = dirname(mount);
    if (beside === "/sys/fs") return;
    for (const hierarchy of readdirSync(beside)) {
      const same = join(beside, hierarchy, basename(this.path));
      if (same !== this.path) await removeCgroup(same);
    }
  }
}

/** Removes a cgroup with all cgroups below it, and kills the processes inside. A missing cgroup is no error. */
export async function removeCgroup(path: string): Promise<void> {
  let names: string[];
  try {
    names = readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name);
  } catch {
    return;
  }
  for (const name of names) await removeCgroup(`${path}/${name}`);
  for (let attempt = 0; attempt < 100; attempt++) {
    try {
      for (const pid of readFileSync(`${path}/cgroup.procs`, "utf8").split("\n").filter(Boolean)) {
        if (Number(pid) !== process.pid) process.kill(Number(pid), "SIGKILL");
      }
      rmdirSync(path);
      return;
    } catch (error) {
      if (isMissing(error)) return;
      await sleep(20);
    }
  }
  throw new Error(`can't remove the cgroup ${path}`);
}
