/** Health has a shape and a word as well as a colour. */
import type { EdgeState } from "../../telemetry/model.ts";
import { svg } from "./dom.ts";

/** In a box from -8 to 8. */
const PATHS: Readonly<Record<EdgeState, string>> = {
  // A disc with a tick.
  ok: "M-7 0a7 7 0 1 0 14 0a7 7 0 1 0 -14 0M-3.5 0.2l2.4 2.5l4.6 -5",
  // A square with a cross.
  failing: "M-7 -7h14v14h-14zM-3.2 -3.2l6.4 6.4M3.2 -3.2l-6.4 6.4",
  // A triangle with a bar.
  slow: "M0 -8l8 14.5h-16zM0 -2.5v4.2M0 4.1v0.6",
  // A ring.
  idle: "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0",
};

export function symbol(state: EdgeState): SVGGElement {
  const [outline = "", ...marks] = PATHS[state].split(/(?<=[zZ]|-14 0|-12 0)(?=M)/);
  return svg(
    "g",
    { class: `symbol ${state}`, "aria-hidden": "true" },
    svg("path", { d: outline, class: "outline" }),
    ...(marks.length > 0 ? [svg("path", { d: marks.join(""), class: "mark" })] : []),
  );
}

/** A padlock in a box from -7 to 7: mutual TLS. */
export function padlock(): SVGGElement {
  return svg(
    "g",
    { class: "padlock", "aria-hidden": "true" },
    svg("circle", { r: 8.5, class: "ground" }),
    svg("path", { d: "M-2.6 -0.8v-2a2.6 2.6 0 0 1 5.2 0v2", class: "shackle" }),
    svg("rect", { x: -4, y: -1, width: 8, height: 6, rx: 1.2, class: "body" }),
  );
}

/** The same beside HTML text. */
export function icon(state: EdgeState): SVGSVGElement {
  return svg(
    "svg",
    { viewBox: "-9 -9 18 18", width: 16, height: 16, class: "icon", "aria-hidden": "true" },
    symbol(state),
  );
}
