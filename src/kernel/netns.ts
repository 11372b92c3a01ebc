/** The network namespace of the calling thread, which is the one that runs JavaScript. */
import { readFileSync, statSync } from "node:fs";
import { check, ERRNO } from "./error.ts";
import { native } from "./native.ts";

/**
 * The network namespace's cookie, as bpf_get_netns_cookie() gives it for a socket of this thread; undefined before
 * kernel 5.14.
 */
export function netnsCookie(): bigint | undefined {
  const cookie = new BigUint64Array(new ArrayBuffer(8));
  const result = native().kmesh_netns_cookie(cookie);
  if (result === -ERRNO.ENOPROTOOPT) return undefined;
  check(result, "getsockopt", "SO_NETNS_COOKIE");
  return cookie[0];
}

/**
 * Whether this is the machine's initial network namespace: that of kthreadd, or of pid 1 when a pid namespace hides
 * kthreadd. undefined when neither can be read.
 */
export function isInitialNetns(): boolean | undefined {
  const own = statSync("/proc/thread-self/ns/net", { bigint: true });
  for (const pid of [2, 1]) {
    try {
      if (pid === 2 && readFileSync("/proc/2/comm", "utf8") !== "kthreadd\n") continue;
      const first = statSync(`/proc/${pid}/ns/net`, { bigint: true });
      return own.ino === first.ino && own.dev === first.dev;
    } catch {
      // Not permitted, or no such process: try the next one.
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

/** Brings `lo` up, which adds 127.0.0.1 and ::1. Throws KernelError: EPERM without CAP_NET_ADMIN. */
export function loopbackUp(): void {
  check(native().kmesh_loopback_up(), "ioctl", "lo");
}
