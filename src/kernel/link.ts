/** Programs attached to a cgroup by a link, which can be pinned and given another program without a gap. */
import { constants } from "node:fs";
import { cString } from "../runtime/ffi.ts";
import { Descriptor } from "./descriptor.ts";
import { check, ERRNO, KernelError } from "./error.ts";
import { infoOf } from "./info.ts";
import { native } from "./native.ts";
import type { BpfProgram } from "./object.ts";

/** The values of enum bpf_attach_type that kmesh uses. */
export const HOOKS = {
  connect4: 10,
  connect6: 11,
  getpeername4: 29,
  getpeername6: 30,
  sock_release: 34,
} as const;

export type Hook = keyof typeof HOOKS;

/** enum bpf_link_type: BPF_LINK_TYPE_CGROUP. */
export const CGROUP_LINK = 3;

export interface LinkInfo {
  id: number;
  /** enum bpf_link_type. For types other than CGROUP_LINK the last two fields are meaningless. */
  type: number;
  programId: number;
  /** 0n after the link was detached or its cgroup removed. Such a link never works again. */
  cgroupId: bigint;
  /** enum bpf_attach_type; see HOOKS. */
  attachType: number;
}

/**
 * A link of any kind. A link that was never pinned detaches when the last descriptor of it is closed, also by death.
 */
export abstract class Link extends Descriptor {
  protected get title(): string {
    return "the link";
  }

  /**
   * Replaces the program by another one of the same type. Each connection or packet meets the old or the new one. Throws
   * KernelError: ENOLINK when a cgroup link's cgroup is removed (some kernels report success: compare `info().cgroupId`).
   */
  update(program: BpfProgram): void {
    check(native().bpf_link_update(this.fd, program.fd, null), "bpf_link_update", program.info.name);
  }
}

/** Opens the descriptor of a pinned link. Throws KernelError: ENOENT when nothing is pinned there. */
export function openPinnedLink(path: string): number {
  return check(native().bpf_obj_get(cString(path)), "bpf_obj_get", path);
}

/** A program at a hook of a cgroup. */
export class CgroupLink extends Link {
  private constructor(fd: number) {
    super(fd);
  }

  /**
   * Attaches at once. Other programs may be attached to the same hook: all run, and each can refuse.
   * @param cgroup a cgroup2 folder
   * Throws KernelError: EPERM when a program is attached there, or above, that does not share its place.
   */
  static attach(program: BpfProgram, cgroup: string, hook: Hook): CgroupLink {
    const lib = native();
    const directory = check(
      lib.kmesh_open(cString(cgroup), constants.O_RDONLY | constants.O_DIRECTORY, 0),
      "open",
      cgroup,
    );
    try {
      const fd = lib.bpf_link_create(program.fd, directory, HOOKS[hook], null);
      if (fd >= 0) return new CgroupLink(fd);
      const detail =
        fd === -ERRNO.EPERM
          ? "not permitted, or a program that does not share the hook is attached there or above: see bpftool cgroup tree"
          : "";
      throw new KernelError("bpf_link_create", -fd, `${hook} at ${cgroup}`, detail);
    } finally {
      lib.kmesh_close(directory);
    }
  }

  /** Opens a pinned link. Throws KernelError: ENOENT when nothing is pinned there. */
  static fromPin(path: string): CgroupLink {
    return CgroupLink.adopt(openPinnedLink(path));
  }

  /** Takes ownership of a link's file descriptor. */
  static adopt(fd: number): CgroupLink {
    return new CgroupLink(fd);
  }

  /** Opens a link by its id. Throws KernelError: ENOENT when it has ended, EPERM without CAP_SYS_ADMIN. */
  static fromId(id: number): CgroupLink {
    return new CgroupLink(check(native().bpf_link_get_fd_by_id(id), "bpf_link_get_fd_by_id", String(id)));
  }

  /** Detaches now, even if pins and other descriptors remain. */
  detach(): void {
    check(native().bpf_link_detach(this.fd), "bpf_link_detach", `link fd ${this.fd}`);
  }

  /** Reads struct bpf_link_info. Throws KernelError when the descriptor is no link. */
  info(): LinkInfo {
    const view = new DataView(infoOf(this.fd, 32, "link"));
    const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
    return {
      type: view.getUint32(0, little),
      id: view.getUint32(4, little),
      programId: view.getUint32(8, little),
      cgroupId: view.getBigUint64(16, little),
      attachType: view.getUint32(24, little),
    };
  }
}
