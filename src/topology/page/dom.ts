/** Elements in one expression. Nothing here takes HTML: text stays text. */

type Child = Node | string | undefined | false;
type Attributes = Readonly<Record<string, string | number | boolean | undefined | ((event: Event) => void)>>;

/** An HTML element. An attribute that is a function listens to the event of its name; true is an empty attribute. */
export function html<K extends keyof HTMLElementTagNameMap>(
  name: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  return fill(document.createElement(name), attributes, children);
}

/** An SVG element, likewise. */
export function svg<K extends keyof SVGElementTagNameMap>(
  name: K,
  attributes: Attributes = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill<E extends Element>(element: E, attributes: Attributes, children: Child[]): E {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  element.append(
    ...children.filter((child): child is Node | string => child !== undefined && child !== false),
  );
  return element;
}

const ruler = document.createElement("canvas").getContext("2d");

/**
 * Cuts a text to `width` pixels of a font (as CSS writes it), at its end or in its middle: names of a kind often begin alike and
 * differ at their end.
 */
export function cut(text: string, width: number, font: string, where: "middle" | "end"): string {
  if (!ruler) return text;
  ruler.font = font;
  const fits = (part: string) => ruler.measureText(part).width <= width;
  if (fits(text)) return text;
  const letters = Array.from(text);
  const without = (count: number) => {
    const kept = letters.length - count;
    const head = where === "end" ? kept : Math.ceil(kept / 2);
    return `${letters.slice(0, head).join("").trimEnd()}…${letters
      .slice(letters.length - (kept - head))
      .join("")
      .trimStart()}`;
  };
  let least = 1;
  let most = letters.length;
  while (least < most) {
    const middle = (least + most) >> 1;
    if (fits(without(middle))) most = middle;
    else least = middle + 1;
  }
  return without(least);
}

/** Makes the browser save a file. */
export function download(name: string, blob: Blob): void {
  const url = URL.createObjectURL(blob);
  html("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
