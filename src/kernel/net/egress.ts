/**
 * Programs at the egress of an interface, in both ways that kernels have: a tcx link (from 6.6 on), which is pinned, and
 * a filter of the clsact qdisc, which stays by itself. Both let other programs at the hook run.
 */
import { check, ERRNO, KernelError } from "../error.ts";
import { infoOf } from "../info.ts";
import { Link, openPinnedLink } from "../link.ts";
import { native } from "../native.ts";
import type { BpfProgram } from "../object.ts";

/** enum bpf_link_type. */
const TCX_LINK = 11;

/** "kmsh": the filter's handle, by which it is known as kmesh's. */
const FILTER_HANDLE = 0x6b6d;
/**
 * Before what others add without one: the kernel gives those 49152 and downwards. A priority has filters of one kind and
 * protocol: where somebody has a u32 filter at 1, ours goes to 2.
 */
const FILTER_PRIORITIES = [1, 2, 3, 4, 5, 6, 7, 8] as const;

/** A link at an interface's egress. Owns its descriptor; without a pin it ends with it. */
export class TcxLink extends Link {
  private constructor(fd: number) {
    super(fd);
  }

  /** Attaches at once, before other programs of the hook. Gives undefined before 6.6. Throws KernelError. */
  static attach(program: BpfProgram, ifindex: number): TcxLink | undefined {
    const fd = native().kmesh_tcx_attach(program.fd, ifindex);
    if (fd === -ERRNO.EINVAL) return undefined;
    return new TcxLink(check(fd, "bpf_link_create", `egress of interface ${ifindex}`));
  }

  /** Throws KernelError: ENOENT when nothing is pinned there. */
  static fromPin(path: string): TcxLink {
    return new TcxLink(openPinnedLink(path));
  }

  /** The interface, 0 when it is gone or the link was detached, and the program's id. Throws when it is no tcx link. */
  info(): { ifindex: number; programId: number } {
    const words = new Uint32Array(infoOf(this.fd, 32, "link"));
    if (words[0] !== TCX_LINK) throw new KernelError("bpf_link_info", ERRNO.EINVAL, "tcx link");
    return { ifindex: words[4] ?? 0, programId: words[2] ?? 0 };
  }
}

/** A filter under kmesh's handle. */
export interface Filter {
  priority: number;
  programId: number;
}

/** The filters of the interface's egress that have kmesh's handle, by priority. Throws KernelError. */
export function filters(ifindex: number): Filter[] {
  const found: Filter[] = [];
  for (const priority of FILTER_PRIORITIES) {
    const result = native().kmesh_clsact_program(ifindex, FILTER_HANDLE, priority);
    if (result === -ERRNO.ENODEV) return [];
    const programId = check(result, "bpf_tc_query", `egress of interface ${ifindex}`);
    if (programId !== 0) found.push({ priority, programId });
  }
  return found;
}

/** Puts another program in a filter's place; every packet meets the one or the other. Throws KernelError. */
export function replaceFilter(program: BpfProgram, ifindex: number, priority: number): void {
  const result = native().kmesh_clsact_attach(program.fd, ifindex, FILTER_HANDLE, priority);
  check(result, "bpf_tc_attach", `egress of interface ${ifindex}`);
}

/** Attaches by clsact at the first priority that no other filter keeps from it. Throws KernelError. */
export function attachFilter(program: BpfProgram, ifindex: number): void {
  const taken = new Set(filters(ifindex).map(({ priority }) => priority));
  let result = -ERRNO.EEXIST;
  for (const priority of FILTER_PRIORITIES) {
    if (taken.has(priority)) continue;
    result = native().kmesh_clsact_attach(program.fd, ifindex, FILTER_HANDLE, priority);
    // The kernel's answer where the priority belongs to another kind of filter, or another protocol.
    if (result !== -ERRNO.EINVAL && result !== -ERRNO.EEXIST) break;
  }
  check(result, "bpf_tc_attach", `egress of interface ${ifindex}`);
}

/** Nothing there is no error. Throws KernelError. */
export function detachFilter(ifindex: number, priority: number): void {
  const result = native().kmesh_clsact_detach(ifindex, FILTER_HANDLE, priority);
  if (result === -ERRNO.ENOENT || result === -ERRNO.ENODEV) return;
  check(result, "bpf_tc_detach", `egress of interface ${ifindex}`);
}
