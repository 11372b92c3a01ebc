/** The network namespace of the calling thread, which is the one that runs JavaScript. */
import { constants, readFileSync, statSync } from "node:fs";
import { cString } from "../runtime/ffi.ts";
import { check, ERRNO } from "./error.ts";
import { native } from "./native.ts";

/** What bpf_get_netns_cookie() gives for a socket made here; undefined before kernel 5.14. */
export function netnsCookie(): bigint | undefined {
  const cookie = new BigUint64Array(new ArrayBuffer(8));
  const result = native().kmesh_netns_cookie(cookie);
  if (result === -ERRNO.ENOPROTOOPT) return undefined;
  check(result, "getsockopt", "SO_NETNS_COOKIE");
  return cookie[0];
}

/**
 * Whether this is the machine's first network namespace: kthreadd's, or, where a pid namespace hides it, that of the
 * first process. undefined when neither may be read.
 */
export function isInitialNetns(): boolean | undefined {
  const own = statSync("/proc/thread-self/ns/net", { bigint: true });
  for (const pid of [2, 1]) {
    try {
      if (pid === 2 && readFileSync("/proc/2/comm", "utf8") !== "kthreadd\n") continue;
      const first = statSync(`/proc/${pid}/ns/net`, { bigint: true });
      return own.ino === first.ino && own.dev === first.dev;
    } catch {
      // Another's process, or none: the next one may do.
    }
  }
  return undefined;
}

/**
 * Moves the calling thread into a new, empty network namespace. Threads that the runtime has started already stay where
 * they are: call it first thing, in a process made for it.
 * Throws KernelError: EPERM without CAP_SYS_ADMIN.
 */
export function unshareNetns(): void {
  check(native().kmesh_unshare_netns(), "unshare", "network namespace");
}

/**
 * Runs a synchronous function inside another network namespace, and comes back whatever happens. It must not wait and
 * must start no thread: such a thread would stay there for ever.
 * @param path of the namespace: /run/netns/NAME, /proc/PID/ns/net
 */
export function insideNetns<T>(path: string, action: () => T): T {
  const lib = native();
  const here = check(
    lib.kmesh_open(cString("/proc/thread-self/ns/net"), constants.O_RDONLY, 0),
    "open",
    "own netns",
  );
  try {
    const there = check(lib.kmesh_open(cString(path), constants.O_RDONLY, 0), "open", path);
    try {
      check(lib.kmesh_setns_net(there), "setns", path);
    } finally {
      lib.kmesh_close(there);
    }
    try {
      return action();
    } finally {
      check(lib.kmesh_setns_net(here), "setns", "own netns");
    }
  } finally {
    lib.kmesh_close(here);
  }
}

/** Brings `lo` up; 127.0.0.1 and ::1 are there then. Throws KernelError: EPERM without CAP_NET_ADMIN. */
export function loopbackUp(): void {
  check(native().kmesh_loopback_up(), "ioctl", "lo");
}
