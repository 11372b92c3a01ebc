/** The start order of an enrolled unit at boot. A systemd drop-in is the only place that defines it. */
import { existsSync, readdirSync, rmdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { readTextFile } from "../../files/read-file.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { fileStep, type Step } from "../framework/plan.ts";
import { GATE, SERVICE } from "./systemd.ts";

/** `open`: starts after kmesh, even if kmesh fails. `closed`: starts only when connections are governed. */
export type AtBoot = "open" | "closed";

/** The state of a unit's drop-in; `edited`: its text is not kmesh's. */
export type BootOrder = AtBoot | "edited";

const NAME = "50-kmesh.conf";

const TEXTS: Readonly<Record<AtBoot, string>> = {
  open: dropInText("open", "It starts after kmesh, and outside the mesh rather than not at all.", [
    `Wants=${SERVICE}`,
    `After=${SERVICE}`,
  ]),
  // Requires kmesh-wait.service: stopping kmesh.service would stop the unit, and a command would run in its sandbox.
  closed: dropInText(
    "closed",
    "It does not start before connections are governed. Nothing that ends kmesh ends it.",
    [`Requires=${GATE}`, `After=${GATE}`],
  ),
};

function dropInText(atBoot: AtBoot, about: string, lines: readonly string[]): string {
  return [
    `# Written by \`kmesh enrol --at-boot ${atBoot}\`; \`kmesh unenrol\` removes it. Put changes into a drop-in of your own.`,
    `# ${about}`,
    "[Unit]",
    ...lines,
    "",
  ].join("\n");
}

/** The drop-in of `unit` (its whole name) in systemd's folder of units. */
export function dropInOf(folder: string, unit: string): string {
  return join(folder, `${unit}.d`, NAME);
}

/** The start order of a unit; undefined without a drop-in. */
export function bootOrderOf(folder: string, unit: string): BootOrder | undefined {
  const path = dropInOf(folder, unit);
  if (!existsSync(path)) return undefined;
  const text = readTextFile(path);
  return text === TEXTS.open ? "open" : text === TEXTS.closed ? "closed" : "edited";
}

/** All units with a drop-in, by name. */
export function bootOrders(folder: string): Record<string, BootOrder> {
  const units = namesIn(folder)
    .filter((name) => name.endsWith(".d"))
    .map((name) => name.slice(0, -".d".length));
  return Object.fromEntries(
    units.flatMap((unit) => {
      const order = bootOrderOf(folder, unit);
      return order === undefined ? [] : [[unit, order] as const];
    }),
  );
}

/** Whether a unit can have a drop-in: other kinds of unit have no start that could wait. */
export function canWait(unit: string): boolean {
  return unit.endsWith(".service");
}

/** Steps that set the start order of a unit. Throws Failure when its drop-in was edited. */
export function bootStep(folder: string, unit: string, atBoot: AtBoot): Step {
  const path = dropInOf(folder, unit);
  if (bootOrderOf(folder, unit) === "edited")
    throw new Failure(
      EXIT.failed,
      `${path} is not as kmesh writes it, so it stays; nothing was changed`,
      "Give it another name if it is yours, or remove it.",
    );
  return { ...fileStep(path, TEXTS[atBoot], 0o644), note: `at boot: ${atBoot}` };
}

/** Steps that remove the drop-in of a unit; [] when it has none. An edited drop-in stays. */
export function bootRemoval(folder: string, unit: string): Step[] {
  const order = bootOrderOf(folder, unit);
  const target = dropInOf(folder, unit);
  if (order === undefined) return [];
  if (order === "edited") return [{ action: "keep", target, note: "edited since kmesh wrote it" }];
  return [
    {
      action: "remove",
      target,
      note: `at boot: ${order}`,
      act() {
        rmSync(target, { force: true });
        const folder = dirname(target);
        if (existsSync(folder) && namesIn(folder).length === 0) rmdirSync(folder);
      },
    },
  ];
}

/** Steps that remove all drop-ins. */
export function bootRemovals(folder: string): Step[] {
  return Object.keys(bootOrders(folder)).flatMap((unit) => bootRemoval(folder, unit));
}

function namesIn(folder: string): string[] {
  return existsSync(folder) ? readdirSync(folder).sort() : [];
}
