/**
 * The files that kmesh.service can read and write, from the unit and its drop-ins (systemd.exec(5), "Sandboxing").
 * `kmesh run`, `config check` and `doctor` use it, so that all three agree.
 */
import { existsSync, readdirSync } from "node:fs";
import { basename, isAbsolute, join } from "node:path";
import { pathSteps } from "../files/path-steps.ts";
import { readTextFile } from "../files/read-file.ts";
import { asset } from "../runtime/assets.ts";

/** The name of kmesh's service. */
export const SERVICE = "kmesh.service";

/** The folders of units and drop-ins, in rising priority: systemd.unit(5). */
const UNIT_FOLDERS = [
  "/lib/systemd/system",
  "/usr/lib/systemd/system",
  "/run/systemd/system",
  "/etc/systemd/system",
];

export type Access = "read" | "write";

/** The reason why the service can't do it, without a subject, and the next step. */
export interface Blocked {
  reason: string;
  next: string;
}

/** The access of the service to a path and all below it. The longest matching path decides. */
interface Rule {
  path: string;
  access: "none" | Access;
  /** The setting of the unit, such as ProtectHome=yes. */
  directive: string;
}

export class ServiceSandbox {
  readonly #rules: readonly Rule[];

  /** Parses the texts of the unit and its drop-ins, in systemd's order. */
  constructor(...texts: string[]) {
    this.#rules = rulesOf(settingsOf(texts));
  }

  /** The reason why the service can't read or write the path; undefined when it can. Follows links. */
  blocked(path: string, access: Access): Blocked | undefined {
    if (!isAbsolute(path))
      return {
        reason: `${path} is no whole path, and ${SERVICE} would look for it in /`,
        next: "Write the path from / on.",
      };
    const steps = pathSteps(path);
    const last = steps.at(-1)?.path ?? path;
    // Each link and the target must be visible. A folder on the way may be hidden if a path below it is bound into it.
    for (const at of [...steps.filter(({ stat }) => stat?.isSymbolicLink()).map((step) => step.path), last]) {
      const rule = this.#ruleOf(at);
      if (rule?.access !== "none") continue;
      const through = path.startsWith(`${rule.path}/`) ? "" : `, which leads to ${at},`;
      return {
        reason: `${path}${through} can't be seen by ${SERVICE} (${rule.directive} hides ${rule.path})`,
        next: `Move it to where the service can see it, such as ${join("/etc/kmesh", basename(path))}, and name it there.`,
      };
    }
    if (access === "read") return undefined;
    const rule = this.#ruleOf(last);
    if (rule?.access !== "read") return undefined;
    return {
      reason: `${path} can't be written to by ${SERVICE} (${rule.directive})`,
      next: `Leave it at its default, or allow it: systemctl edit ${SERVICE}, with the lines [Service] and ReadWritePaths=${path}`,
    };
  }

  #ruleOf(path: string): Rule | undefined {
    let found: Rule | undefined;
    for (const rule of this.#rules) {
      const within = rule.path === "/" || path === rule.path || path.startsWith(`${rule.path}/`);
      if (within && rule.path.length >= (found?.path.length ?? 0)) found = rule;
    }
    return found;
  }
}

/** The sandbox of the installed service with its drop-ins, or of the unit that this executable would install. */
export function serviceSandbox(): ServiceSandbox {
  const unit = unitFile();
  const text = unit === undefined ? new TextDecoder().decode(asset(SERVICE)) : textOf(unit);
  return new ServiceSandbox(text, ...dropIns().map(textOf));
}

/** Whether systemd has a unit with this name. */
export function isServiceInstalled(): boolean {
  return unitFile() !== undefined;
}

/** Whether this process runs in the service's cgroup, and so in its sandbox. */
export function runsAsService(): boolean {
  return textOf("/proc/self/cgroup")
    .split("\n")
    .some((line) => line.endsWith(`/${SERVICE}`));
}

function unitFile(): string | undefined {
  return UNIT_FOLDERS.map((folder) => join(folder, SERVICE)).findLast((path) => existsSync(path));
}

/** By name. Of two with the same name, the one with the higher priority. */
function dropIns(): string[] {
  const found = new Map<string, string>();
  for (const folder of UNIT_FOLDERS) {
    for (const kind of ["service.d", `${SERVICE}.d`]) {
      const path = join(folder, kind);
      if (!existsSync(path)) continue;
      for (const name of readdirSync(path)) if (name.endsWith(".conf")) found.set(name, join(path, name));
    }
  }
  return [...found].sort(([one], [other]) => (one < other ? -1 : 1)).map(([, path]) => path);
}

function textOf(path: string): string {
  try {
    return readTextFile(path);
  } catch {
    return "";
  }
}

/** The values of each key of [Service]. An empty value resets the list. */
function settingsOf(texts: readonly string[]): Map<string, string[]> {
  const settings = new Map<string, string[]>();
  for (const text of texts) {
    let section = "";
    for (const line of text
      .replace(/\\\n/g, " ")
      .split("\n")
      .map((each) => each.trim())) {
      if (line === "" || /^[#;]/.test(line)) continue;
      section = /^\[(.+)\]$/.exec(line)?.[1] ?? section;
      const [, key, value = ""] = /^([A-Za-z]+)\s*=\s*(.*)$/.exec(line) ?? [];
      if (section !== "Service" || key === undefined) continue;
      if (value === "") settings.delete(key);
      else settings.set(key, [...(settings.get(key) ?? []), value]);
    }
  }
  return settings;
}

function rulesOf(settings: ReadonlyMap<string, string[]>): Rule[] {
  const rules: Rule[] = [];
  const word = (key: string) => settings.get(key)?.at(-1) ?? "no";
  const isYes = (text: string) => ["yes", "true", "on", "1"].includes(text.toLowerCase());
  const add = (access: Rule["access"], directive: string, ...paths: string[]) => {
    for (const path of paths) rules.push({ path, access, directive });
  };

  const system = word("ProtectSystem");
  const systemIs = `ProtectSystem=${system}`;
  if (system === "strict") {
    add("read", systemIs, "/");
    add("write", systemIs, "/dev", "/proc", "/sys");
  } else if (system === "full") add("read", systemIs, "/usr", "/boot", "/efi", "/etc");
  else if (isYes(system)) add("read", systemIs, "/usr", "/boot", "/efi");

  const home = word("ProtectHome");
  const homes = ["/home", "/root", "/run/user"];
  if (isYes(home) || home === "tmpfs") add("none", `ProtectHome=${home}`, ...homes);
  else if (home === "read-only") add("read", `ProtectHome=${home}`, ...homes);

  if (isYes(word("PrivateTmp"))) add("none", `PrivateTmp=${word("PrivateTmp")}`, "/tmp", "/var/tmp");
  if (isYes(word("PrivateDevices"))) {
    add("none", `PrivateDevices=${word("PrivateDevices")}`, "/dev");
    const kept = [
      "null",
      "zero",
      "full",
      "random",
      "urandom",
      "tty",
      "fd",
      "stdin",
      "stdout",
      "stderr",
      "shm",
    ];
    add("write", "PrivateDevices", ...kept.map((name) => `/dev/${name}`));
  }
  if (isYes(word("ProtectControlGroups"))) add("read", "ProtectControlGroups=yes", "/sys/fs/cgroup");
  if (isYes(word("ProtectKernelTunables"))) add("read", "ProtectKernelTunables=yes", "/sys", "/proc/sys");

  for (const [key, access] of [
    ["InaccessiblePaths", "none"],
    ["TemporaryFileSystem", "none"],
    ["ReadOnlyPaths", "read"],
    ["ReadWritePaths", "write"],
    ["BindReadOnlyPaths", "read"],
    ["BindPaths", "write"],
  ] as const) {
    for (const entry of (settings.get(key) ?? []).flatMap((each) => each.split(/\s+/))) {
      const [source = "", target] = entry.replace(/^[-+]+/, "").split(":");
      const path = key.startsWith("Bind") ? (target ?? source) : source;
      // A path with a specifier belongs to the unit itself.
      if (path.startsWith("/") && !path.includes("%"))
        add(access, `${key}=${entry}`, path.replace(/(.)\/+$/, "$1"));
    }
  }
  for (const [key, parent] of [
    ["StateDirectory", "/var/lib"],
    ["RuntimeDirectory", "/run"],
    ["CacheDirectory", "/var/cache"],
    ["LogsDirectory", "/var/log"],
  ] as const) {
    for (const name of (settings.get(key) ?? []).flatMap((each) => each.split(/\s+/)))
      add("write", `${key}=${name}`, join(parent, name.split(":")[0] ?? name));
  }
  return rules;
}
