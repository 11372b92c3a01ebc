/** A program that a network namespace runs (sk_lookup), attached by a link, which can be pinned and given another program. */
import { constants, statSync } from "node:fs";
import { cString } from "../../runtime/ffi.ts";
import { check, ERRNO, KernelError } from "../error.ts";
import { infoOf } from "../info.ts";
import { Link, openPinnedLink } from "../link.ts";
import { native } from "../native.ts";
import type { BpfProgram } from "../object.ts";

/** enum bpf_attach_type. */
const SK_LOOKUP = 36;
/** enum bpf_link_type. */
const NETNS_LINK = 5;

/** The network namespace of the calling thread. */
const OWN_NETNS = "/proc/thread-self/ns/net";

/** The inode of the calling thread's network namespace, by which `NetnsLink.info` names it. */
export function ownNetns(): number {
  return statSync(OWN_NETNS).ino;
}

/** Owns its file descriptor; `close()` may be called twice. Without a pin it detaches when the last descriptor is closed. */
export class NetnsLink extends Link {
  private constructor(fd: number) {
    super(fd);
  }

  /**
   * Attaches an sk_lookup program to the calling thread's network namespace, behind those that are there: all run, and one
   * that refuses wins. Throws KernelError: EINVAL before 5.9, E2BIG with 64 programs, EPERM without CAP_NET_ADMIN.
   */
  static attach(program: BpfProgram): NetnsLink {
    const lib = native();
    const netns = check(lib.kmesh_open(cString(OWN_NETNS), constants.O_RDONLY, 0), "open", OWN_NETNS);
    try {
      const fd = lib.bpf_link_create(program.fd, netns, SK_LOOKUP, null);
      return new NetnsLink(check(fd, "bpf_link_create", "sk_lookup of this network namespace"));
    } finally {
      lib.kmesh_close(netns);
    }
  }

  /** Throws KernelError: ENOENT when nothing is pinned there. */
  static fromPin(path: string): NetnsLink {
    return new NetnsLink(openPinnedLink(path));
  }

  /** The inode of its namespace, 0 when that is gone; the program's id. Throws KernelError when it is another kind of link. */
  info(): { netns: number; programId: number } {
    const words = new Uint32Array(infoOf(this.fd, 32, "link"));
    if (words[0] !== NETNS_LINK || words[5] !== SK_LOOKUP)
      throw new KernelError("bpf_link_info", ERRNO.EINVAL, "sk_lookup link");
    return { netns: words[4] ?? 0, programId: words[2] ?? 0 };
  }
}
