/** Exports the map as a file. */
import type { EdgesDocument } from "../../telemetry/model.ts";
import type { Picture } from "../layout.ts";
import { download, svg } from "./dom.ts";

/** Properties that page.css sets: a file has no style sheet. */
const STYLES = [
  "fill",
  "stroke",
  "stroke-width",
  "stroke-dasharray",
  "opacity",
  "font-size",
  "font-weight",
  "font-family",
];

/** The whole map, not only the visible part. */
function standalone(map: SVGSVGElement, { width, height }: Picture): string {
  const copy = map.cloneNode(true) as SVGSVGElement;
  const from = [...map.querySelectorAll("*")];
  [...copy.querySelectorAll("*")].forEach((element, index) => {
    const style = getComputedStyle(from[index] ?? map);
    for (const name of STYLES) element.setAttribute(name, style.getPropertyValue(name));
    for (const name of ["tabindex", "class", "aria-pressed", "role"]) element.removeAttribute(name);
  });
  copy.firstElementChild?.setAttribute("transform", "");
  copy.removeAttribute("style");
  copy.setAttribute("viewBox", `0 0 ${width} ${height}`);
  copy.setAttribute("width", String(width));
  copy.setAttribute("height", String(height));
  const background = getComputedStyle(document.body).getPropertyValue("background-color");
  copy.prepend(svg("rect", { width, height, fill: background }));
  return new XMLSerializer().serializeToString(copy);
}

export function exportSvg(map: SVGSVGElement, picture: Picture): void {
  download("kmesh-topology.svg", new Blob([standalone(map, picture)], { type: "image/svg+xml" }));
}

/** At twice the size. */
export async function exportPng(map: SVGSVGElement, picture: Picture): Promise<void> {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(map, picture))}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  const scale = Math.min(2, 16_000 / Math.max(picture.width, picture.height));
  canvas.width = picture.width * scale;
  canvas.height = picture.height * scale;
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/png"));
  if (blob) download("kmesh-topology.png", blob);
}

export function exportJson(edges: EdgesDocument): void {
  download("kmesh-topology.json", new Blob([JSON.stringify(edges, null, 2)], { type: "application/json" }));
}
