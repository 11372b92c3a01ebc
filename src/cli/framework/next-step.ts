/** The next step for system errors without one. */
import { codeOf } from "../../errors/reason.ts";

const STEPS: Readonly<Record<string, string>> = {
  EMFILE: "This process may open no more files: ulimit -n 65536, or LimitNOFILE= in the unit.",
  ENFILE: "The machine can open no more files: sysctl fs.file-max, and see who holds them (lsof).",
  EROFS:
    "That file system is mounted read-only: mount -o remount,rw it, or name other folders with --state-dir, --run-dir or --root.",
  ENOSPC:
    "That file system is full: df shows it; make room, or name other folders with --state-dir and --run-dir.",
  EDQUOT:
    "The quota on that file system is used up: make room, or name other folders with --state-dir and --run-dir.",
  ENOMEM: "Memory is used up, or limited: free -m, and the unit's MemoryMax=.",
  EIO: "The disk or the file system is damaged: see dmesg.",
  EADDRINUSE: "Something else listens there: ss -xlp shows unix sockets.",
};

/** The next step for EMFILE, EROFS, ...; "" if there is no general one. */
export function nextStepOf(error: unknown, root = process.getuid?.() === 0): string {
  const code = codeOf(error) ?? "";
  if (code === "EACCES" || code === "EPERM")
    return root
      ? "Even root may not: a security module, a container or an immutable file (lsattr) is in the way."
      : "Run it as root, or with sudo.";
  return STEPS[code] ?? "";
}
