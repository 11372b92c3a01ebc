/** Detects kernel features by trying them, not by the kernel's version: distributions backport features. */

import { existsSync } from "node:fs";
import { release } from "node:os";
import { cString } from "../runtime/ffi.ts";
import { KernelError } from "./error.ts";
import { BpfMap, FLAG } from "./maps.ts";
import { native } from "./native.ts";
import { netnsCookie } from "./netns.ts";

export interface KernelRelease {
  major: number;
  minor: number;
  /** The text of uname -r. */
  text: string;
}

export interface Feature {
  /** A noun phrase for messages. */
  feature: string;
  present: boolean;
  /** The first mainline kernel that has it. */
  since: string;
  /** Whether kmesh can't work without it. */
  required: boolean;
  /** The effect when it is missing, as a main clause; "" when it is required. */
  without: string;
}

/** enum bpf_prog_type. */
const PROGRAM = { socketFilter: 1, sockOps: 13, cgroupSockAddr: 18 } as const;
/** enum bpf_func_id. */
const HELPER = {
  skStorageGet: 107,
  getNetnsCookie: 122,
  ktimeGetCoarse: 160,
  setRetval: 187,
  skcToMptcpSock: 196,
} as const;

/** Parses the kernel's version from the text of uname -r. */
export function parseRelease(text: string): KernelRelease {
  const [major = 0, minor = 0] = text.split(/[.-]/).map((part) => Number.parseInt(part, 10));
  return { major, minor, text };
}

export function kernelRelease(): KernelRelease {
  return parseRelease(release());
}

/** Tries every feature that kmesh uses (a few milliseconds). Throws KernelError when bpf(2) is not permitted. */
export function probe(): Feature[] {
  return [
    {
      feature: "BTF of its own (/sys/kernel/btf/vmlinux)",
      present: existsSync("/sys/kernel/btf/vmlinux"),
      since: "5.4",
      required: true,
      without: "",
    },
    {
      feature: "inner BPF maps of different sizes",
      present: innerMaps(),
      since: "5.10",
      required: true,
      without: "",
    },
    {
      feature: "sockets' network namespaces in connect programs",
      present: helper(PROGRAM.cgroupSockAddr, HELPER.getNetnsCookie),
      since: "5.7",
      required: true,
      without: "",
    },
    {
      feature: "per-socket storage in connect programs",
      present:
        helper(PROGRAM.cgroupSockAddr, HELPER.skStorageGet) && helper(PROGRAM.sockOps, HELPER.skStorageGet),
      since: "5.10",
      required: true,
      without: "",
    },
    {
      feature: "memory accounting of BPF maps by cgroup",
      present: helper(PROGRAM.socketFilter, HELPER.ktimeGetCoarse),
      since: "5.11",
      required: false,
      without: "tables count against RLIMIT_MEMLOCK, which must be unlimited (LimitMEMLOCK=infinity)",
    },
    {
      feature: "atomic operations that fetch",
      present: fetchAtomics(),
      since: "5.12",
      required: false,
      without:
        "connections made at the same moment may take the same turn, so that shares are a little less exact; traffic counters learn of bytes and of accepted connections when a connection ends",
    },
    {
      feature: "network namespace cookies of sockets",
      present: netnsCookie() !== undefined,
      since: "5.14",
      required: false,
      without: "only the machine's first network namespace, or all of them, can be governed",
    },
    {
      feature: "choice of errno by cgroup programs",
      present: helper(PROGRAM.cgroupSockAddr, HELPER.setRetval),
      since: "5.18",
      required: false,
      without: "every refused connection fails with EPERM",
    },
    {
      feature: "MPTCP sockets found by connect programs",
      // A kernel without MPTCP needs no helper for it.
      present: !existsSync("/proc/sys/net/mptcp") || helper(PROGRAM.cgroupSockAddr, HELPER.skcToMptcpSock),
      since: "5.19",
      required: false,
      without:
        "connections of MPTCP sockets are redirected, but getpeername shows the endpoint, and neither maxConnections, ejection nor traffic counters count them",
    },
  ];
}

/** What a missing optional feature takes away, as a sentence without a full stop. */
export function formatMissing({ feature, since, without }: Feature): string {
  return `no ${feature} (from Linux ${since} on): ${without}`;
}

let limits: string[] | undefined;

/** What kmesh does not do on this kernel, a line each; [] when nothing is missing. Throws as `probe`, which it asks once. */
export function kernelLimits(): string[] {
  limits ??= probe()
    .filter(({ present, required }) => !present && !required)
    .map(formatMissing);
  return limits;
}

let fetches: boolean | undefined;

/** Whether the programs with atomics that fetch are loaded, instead of the compatible ones without. */
export function fetchAtomics(): boolean {
  fetches ??= loads([
    // r1 = 1; *(u64 *)(r10 - 8) = r1; r1 = fetch_and_add((u64 *)(r10 - 8), r1); r0 = 0; exit
    instruction(0xb7, 1, 0, 0, 1),
    instruction(0x7b, 10, 1, -8, 0),
    instruction(0xdb, 10, 1, -8, 1),
    instruction(0xb7, 0, 0, 0, 0),
    instruction(0x95, 0, 0, 0, 0),
  ]);
  return fetches;
}

function helper(program: number, id: number): boolean {
  return native().libbpf_probe_bpf_helper(program, id, null) === 1;
}

function innerMaps(): boolean {
  try {
    BpfMap.create({
      name: "kmesh_probe",
      type: "array",
      keySize: 4,
      valueSize: 8,
      maxEntries: 1,
      flags: FLAG.innerMap | FLAG.mmapable,
    }).close();
    return true;
  } catch (error) {
    // EPERM does not mean an old kernel: this process lacks the permission.
    if (error instanceof KernelError && error.code === "EPERM") throw error;
    return false;
  }
}

function loads(program: readonly bigint[]): boolean {
  const code = new BigUint64Array(new ArrayBuffer(program.length * 8));
  code.set(program);
  const name = cString("kmesh_probe");
  const fd = native().bpf_prog_load(
    PROGRAM.socketFilter,
    name,
    cString("GPL"),
    code,
    BigInt(program.length),
    null,
  );
  if (fd >= 0) native().kmesh_close(fd);
  return fd >= 0;
}

/** struct bpf_insn, on a little-endian machine. */
function instruction(
  code: number,
  destination: number,
  source: number,
  offset: number,
  value: number,
): bigint {
  const low = code | (destination << 8) | (source << 12) | ((offset & 0xffff) << 16);
  return BigInt.asUintN(32, BigInt(low)) | (BigInt.asUintN(32, BigInt(value)) << 32n);
}
