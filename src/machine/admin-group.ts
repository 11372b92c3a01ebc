/** The group that may read the agent's status: its id, and its access to the read-only socket. */
import { spawnSync } from "node:child_process";
import { chmodSync, chownSync, readFileSync, rmSync, statSync } from "node:fs";
import { Unsupported } from "./unsupported.ts";

/** The id of a group, from /etc/group or another source of the machine (getent). Throws Unsupported. */
export function groupNumber(name: string): number {
  if (/^\d+$/.test(name)) return Number(name);
  const local = numberIn(readFileSync("/etc/group", "utf8"), name);
  if (local !== undefined) return local;
  const { stdout } = spawnSync("getent", ["group", name], { encoding: "utf8", timeout: 5_000 });
  const found = numberIn(stdout ?? "", name);
  if (found !== undefined) return found;
  throw new Unsupported(`admin-group: there is no group ${name}`, `Make it: groupadd --system ${name}`);
}

/** The id of a group in a text in the format of group(5). */
export function numberIn(text: string, name: string): number | undefined {
  for (const line of text.split("\n")) {
    const [group, , number] = line.split(":");
    if (group === name && /^\d+$/.test(number ?? "")) return Number(number);
  }
  return undefined;
}

/** Lets members of `group` open files in `folder` whose names they know. They can't list or write it. */
export function letGroupEnter(folder: string, group: number): void {
  chownSync(folder, process.geteuid?.() ?? 0, group);
  chmodSync(folder, 0o710);
}

/** Makes the folder accessible to root only, and removes the `socket` of an agent with another setting. */
export function keepGroupsOut(folder: string, socket: string): void {
  rmSync(socket, { force: true });
  if ((statSync(folder).mode & 0o077) === 0o010) chmodSync(folder, 0o700);
}
