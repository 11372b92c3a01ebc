/** The group that may look at the agent, and nothing else: who it is, and how it gets to its socket. */
import { spawnSync } from "node:child_process";
import { chmodSync, chownSync, readFileSync, rmSync, statSync } from "node:fs";
import { Unsupported } from "./unsupported.ts";

/** The number of a group: of /etc/group, or of whatever else the machine asks for groups (getent). Throws Unsupported. */
export function groupNumber(name: string): number {
  if (/^\d+$/.test(name)) return Number(name);
  const local = numberIn(readFileSync("/etc/group", "utf8"), name);
  if (local !== undefined) return local;
  const { stdout } = spawnSync("getent", ["group", name], { encoding: "utf8", timeout: 5_000 });
  const found = numberIn(stdout ?? "", name);
  if (found !== undefined) return found;
  throw new Unsupported(`admin-group: there is no group ${name}`, `Make it: groupadd --system ${name}`);
}

/** The same of a text as group(5) has it. */
export function numberIn(text: string, name: string): number | undefined {
  for (const line of text.split("\n")) {
    const [group, , number] = line.split(":");
    if (group === name && /^\d+$/.test(number ?? "")) return Number(number);
  }
  return undefined;
}

/** Has members of `group` reach what lies in `folder` under a name they know; they can neither list nor write it. */
export function letGroupEnter(folder: string, group: number): void {
  chownSync(folder, process.geteuid?.() ?? 0, group);
  chmodSync(folder, 0o710);
}

/** The folder is root's alone, as without admin-group; `socket` is what an agent with another setting left there. */
export function keepGroupsOut(folder: string, socket: string): void {
  rmSync(socket, { force: true });
  if ((statSync(folder).mode & 0o077) === 0o010) chmodSync(folder, 0o700);
}
