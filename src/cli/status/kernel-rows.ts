/** The rows of `kmesh status` about the kernel: hooks, settings, enrolment, ejections. */
import type { Summary } from "../../datapath/inspect/state.ts";
import { formatMatch } from "../../mesh/frontend.ts";
import { plural } from "../framework/output.ts";
import type { BootOrder } from "../service/boot-order.ts";

export function kernelFacts(kernel: Summary | undefined, bpffs: string): [string, string][] {
  if (!kernel) return [["kernel", `holds nothing: nothing is pinned in ${bpffs}`]];
  const off = kernel.hooks.filter((hook) => !hook.attached).map(({ hook }) => hook);
  const on = kernel.hooks.filter((hook) => hook.attached).map(({ hook }) => hook);
  const { settings } = kernel;
  const memory = kernel.tables.reduce((sum, { bytes }) => sum + bytes, 0);
  return [
    [
      "hooks",
      on.length === 0
        ? "none attached: no connection is governed"
        : `attached: ${on.join(", ")}${off.length > 0 ? `; NOT attached: ${off.join(", ")}` : ""}`,
    ],
    ...formatSettings(kernel.foreign === undefined ? settings : undefined),
    ...formatEjections(kernel.foreign === undefined ? kernel.ejections : undefined),
    ...(kernel.limits ?? []).map((limit): [string, string] => ["this kernel has", limit]),
    ["memory", `${(memory / 2 ** 20).toFixed(1)} MB of tables, pinned in ${kernel.bpffs}`],
  ];
}

function formatSettings(settings: Summary["settings"]): [string, string][] {
  if (!settings) return [];
  return [
    ["governs", `${formatEnrolled(settings)}; network namespace: ${settings.netns}`],
    ["excluded", settings.exclusions.join(", ") || "nothing but loopback, link-local and agents"],
    ["other addresses", settings.fallback],
  ];
}

/** The start order of units at boot. */
export function formatBoot(atBoot: Record<string, BootOrder> = {}): [string, string][] {
  const orders = Object.entries(atBoot);
  const of = (order: BootOrder) =>
    orders.flatMap(([unit, each]) => (each === order ? [unit] : [])).join(", ");
  const parts = [
    ["open (rather outside the mesh than not at all)", of("open")],
    ["closed (not before it is governed)", of("closed")],
    ["by a drop-in that was edited", of("edited")],
  ].flatMap(([how, units]) => (units === "" ? [] : [`${how}: ${units}`]));
  return parts.length > 0 ? [["at boot", parts.join("; ")]] : [];
}

/** Endpoints that are listed; --output json has all. */
const EJECTED = 5;

function formatEjections(ejections: Summary["ejections"]): [string, string][] {
  if (!ejections) return [];
  const { now, ever, stale } = ejections;
  const shown = now.slice(0, EJECTED).map(({ cluster, address, port, forMs }) => {
    const at = formatMatch({ kind: "address", address, port });
    return `${at} of ${cluster} for ${Math.ceil(forMs / 1000)} s`;
  });
  if (now.length > EJECTED) shown.push(`and ${now.length - EJECTED} more`);
  const times = ever > 0 ? `; ${plural(ever, "time")} in all` : "";
  const why = stale
    ? "; the tables follow no istiod now, so each cluster leaves out endpoints whose connects fail 5 times in a row"
    : "";
  return [["ejected", `${shown.join(", ") || "no endpoint"}${times}${why}`]];
}

function formatEnrolled({ cgroups, units }: NonNullable<Summary["settings"]>): string {
  const running = ({ cgroup, populated }: (typeof units)[number]) =>
    populated ? "runs" : cgroup === undefined ? "is not there now" : "has no process now";
  const named = units.map((each) => `${each.unit} (${running(each)})`);
  return [...cgroups, ...named].join(", ") || "nothing: no cgroup and no unit is enrolled";
}
