/** The map: a layout as SVG, with pan, zoom, selection and keys. Keeps zoom, place and focus over refreshes. */
import type { EdgesDocument } from "../../telemetry/model.ts";
import { formatRate, formatShare } from "../format.ts";
import { STATE_WORDS } from "../health.ts";
import type { Link, Picture, Shape } from "../layout.ts";
import { SIZE } from "../layout.ts";
import { cut, html, svg } from "./dom.ts";
import { padlock, symbol } from "./symbols.ts";

export interface MapListener {
  /** A node, an edge or a link of several edges; undefined for nothing. */
  select(id: string | undefined): void;
  /** Fold or unfold a group. */
  toggle(group: string): void;
}

const ZOOM = { least: 0.3, most: 2.5, step: 1.2, natural: 1.15 } as const;
/** Height of the buttons and the legend below the map, pixels. */
const CORNER = 54;
/** The least zoom at which the map is shown first: names can still be read. Fit goes below it. */
const READABLE = 0.74;
/** As in page.css. */
const FONT = { title: "600 13px", detail: "11.5px" } as const;
/** Above this number lines are drawn faintly, because they would hide each other. */
const MANY_LINKS = 120;
/** Width of a shape that its text does not get. */
const TEXT_WIDTH_LOSS = 44;

export class MapView {
  readonly element: HTMLElement;
  /** It is as large as the picture. The window shows a part of it. */
  readonly svg: SVGSVGElement;
  readonly #listener: MapListener;
  readonly #scene = svg("g", { class: "scene" });
  readonly #headings = svg("g", { class: "headings" });
  readonly #links = svg("g", {
    class: "links",
    "aria-hidden": "true",
    click: (event) => {
      const link = this.#linkOf(event);
      event.stopPropagation();
      if (link) this.#listener.select(link.edges.length === 1 ? link.edges[0] : link.id);
    },
    pointermove: (event) => this.#showTip(event as PointerEvent),
    pointerleave: () => {
      this.#tip.hidden = true;
    },
  });
  readonly #shapes = svg("g", { class: "shapes" });
  readonly #tip = html("div", { class: "tip", role: "presentation", hidden: true });
  readonly #drawn = new Map<string, { element: SVGGElement; text: string }>();
  readonly #drawnLinks = new Map<string, { element: SVGGElement; text: string }>();
  #picture: Picture | undefined;
  #document: EdgesDocument | undefined;
  #selected: string | undefined;
  /** The shape that Tab leads to. */
  #current: string | undefined;
  #place = { x: 0, y: 0, zoom: 1 };
  /** The user has moved the map or changed its zoom. */
  #isMoved = false;
  #placedFor = "";
  readonly #window: HTMLElement;
  /** Of the window. */
  #size = { width: 0, height: 0 };
  /** Fonts, as CSS has them. */
  #family = "";
  #frame = 0;

  constructor(listener: MapListener) {
    this.#listener = listener;
    this.#scene.append(this.#headings, this.#links, this.#shapes);
    this.svg = svg(
      "svg",
      { class: "map", role: "group", "aria-label": "Map of callers, units, services and endpoints" },
      this.#scene,
    );
    this.#window = html("div", { class: "window" }, this.svg);
    const zoom = (factor: number) => () => this.#zoomCentre(factor);
    this.element = html(
      "div",
      { class: "map-box" },
      this.#window,
      this.#tip,
      html(
        "div",
        { class: "zoom", role: "group", "aria-label": "Zoom" },
        html(
          "button",
          { type: "button", "aria-label": "Zoom in", title: "Zoom in (+)", click: zoom(ZOOM.step) },
          "+",
        ),
        html(
          "button",
          { type: "button", "aria-label": "Zoom out", title: "Zoom out (−)", click: zoom(1 / ZOOM.step) },
          "−",
        ),
        html("button", { type: "button", title: "Show all of the map (0)", click: () => this.fit() }, "Fit"),
      ),
      legend(),
    );
    this.#listenToPointer();
    this.svg.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.#placeFirst()).observe(this.#window);
  }

  draw(picture: Picture, document: EdgesDocument, selected: string | undefined): void {
    // Only once, because the browser then computes all styles that have changed.
    this.#family ||= getComputedStyle(this.svg).fontFamily;
    this.#picture = picture;
    this.#document = document;
    this.#selected = selected;
    // Before anything is drawn: a browser lays texts out anew at another zoom.
    this.#placeFirst();
    this.#place = this.#bounded(this.#place);
    this.#show();
    const focused = this.#focusedShape();
    if (!picture.shapes.some(({ id }) => id === this.#current)) this.#current = picture.shapes[0]?.id;
    this.#headings.replaceChildren(
      ...picture.columns.flatMap(({ title, x, count }) => [
        svg(
          "text",
          { x, y: 24, class: "heading" },
          `${title} `,
          svg("tspan", { class: "count" }, String(count)),
        ),
        ...(count === 0 ? [svg("text", { x, y: SIZE.top + 20, class: "nothing" }, "none in this time")] : []),
      ]),
    );
    this.#reuse(this.#drawn, this.#shapes, picture.shapes, (shape) => this.#drawShape(shape));
    this.#reuse(this.#drawnLinks, this.#links, picture.links, (link) => this.#drawLink(link));
    this.#mark();
    if (focused !== undefined) this.#drawn.get(focused)?.element.focus({ preventScroll: true });
    this.svg.classList.toggle("many", picture.links.length > MANY_LINKS);
  }

  /** All of the map, however small. */
  fit(): void {
    if (this.#picture) this.#scaleTo(this.#fitting(this.#picture));
  }

  /** Until the user moves the map: all of it where names stay readable, else what fits from the top left. */
  #placeFirst(): void {
    const picture = this.#picture;
    const { clientWidth: width, clientHeight: height } = this.#window;
    if (width === 0) return;
    this.#size = { width, height };
    const placedFor = `${width} ${height}`;
    if (this.#isMoved || !picture || this.#placedFor === placedFor) return;
    this.#placedFor = placedFor;
    const byWidth = width / picture.width;
    this.#scaleTo(
      byWidth < READABLE
        ? READABLE
        : Math.min(byWidth, Math.max(this.#fitting(picture), READABLE), ZOOM.natural),
    );
    this.#isMoved = false;
  }

  /** The lowest shapes stay above the buttons in the corner. */
  #fitting({ width, height }: Picture): number {
    return Math.min(this.#size.width / width, (this.#size.height - CORNER) / height, ZOOM.natural);
  }

  #scaleTo(wanted: number): void {
    const zoom = Math.min(ZOOM.natural, Math.max(ZOOM.least, wanted));
    const free = this.#size.width - (this.#picture?.width ?? 0) * zoom;
    this.#move({ x: Math.max(0, free / 2), y: 0, zoom });
  }

  /** Moves the map so that the shapes of an id can be seen, and gives the focus to the first. */
  reveal(id: string, takeFocus: boolean): void {
    const shape = this.#shapeOf(id);
    if (!shape) return;
    const { x, y, zoom } = this.#place;
    const { width, height } = this.#size;
    const left = shape.x * zoom + x;
    const top = shape.y * zoom + y;
    const isBeside = left < 0 || left + shape.width * zoom > width;
    const isBeyond = top < 0 || top + shape.height * zoom > height;
    if (isBeside || isBeyond)
      this.#move({
        x: isBeside ? width / 2 - (shape.x + shape.width / 2) * zoom : x,
        y: isBeyond ? height / 2 - (shape.y + shape.height / 2) * zoom : y,
        zoom,
      });
    this.#current = shape.id;
    this.#mark();
    if (takeFocus) this.#drawn.get(shape.id)?.element.focus({ preventScroll: true });
  }

  /** Makes only elements of items that have changed. Elements have the order of their items. */
  #reuse<T extends { id: string }>(
    drawn: Map<string, { element: SVGGElement; text: string }>,
    parent: SVGGElement,
    items: readonly T[],
    make: (item: T) => SVGGElement,
  ): void {
    const kept = new Set(items.map(({ id }) => id));
    for (const [id, { element }] of drawn)
      if (!kept.has(id)) {
        element.remove();
        drawn.delete(id);
      }
    let next = parent.firstElementChild;
    for (const item of items) {
      const text = JSON.stringify(item);
      const known = drawn.get(item.id);
      if (known?.text === text) {
        if (known.element === next) next = next.nextElementSibling;
        else parent.insertBefore(known.element, next);
        continue;
      }
      const element = make(item);
      if (known) {
        if (known.element === next) next = next.nextElementSibling;
        known.element.remove();
      }
      parent.insertBefore(element, next);
      drawn.set(item.id, { element, text });
    }
  }

  #drawShape(shape: Shape): SVGGElement {
    const { width, height } = shape;
    const room = width - TEXT_WIDTH_LOSS;
    const isGroup = shape.kind === "group";
    const element = svg(
      "g",
      {
        class: `shape ${shape.kind} ${shape.state}`,
        transform: `translate(${shape.x} ${shape.y})`,
        role: "button",
        tabindex: -1,
        "data-id": shape.id,
        ...(isGroup ? { "aria-expanded": String(shape.unfolded === true) } : {}),
        click: () => this.#activate(shape),
        focus: () => {
          this.#current = shape.id;
          this.#mark();
        },
      },
      // The name for screen readers, and the whole of texts that are cut.
      svg("title", {}, shape.label),
      ...(isGroup ? [svg("rect", { x: 4, y: 4, width, height, rx: 6, class: "back" })] : []),
      svg("rect", { width, height, rx: 6, class: "box" }),
      svg("g", { transform: "translate(19 24)" }, symbol(shape.state)),
      svg(
        "text",
        { x: 36, y: 20, class: "title" },
        cut(shape.title, room, `${FONT.title} ${this.#family}`, "middle"),
      ),
      svg(
        "text",
        { x: 36, y: 37, class: "detail" },
        cut(shape.detail || STATE_WORDS[shape.state], room, `${FONT.detail} ${this.#family}`, "end"),
      ),
      ...(isGroup
        ? [
            svg("path", {
              d: shape.unfolded ? "M-4 -2l4 4l4 -4" : "M-2 -4l4 4l-4 4",
              class: "arrow",
              transform: `translate(${width - 14} 24)`,
            }),
          ]
        : []),
    );
    return element;
  }

  #drawLink(link: Link): SVGGElement {
    return svg(
      "g",
      {
        class: `link ${link.state}${link.someFail ? " some-fail" : ""}`,
        "data-id": link.id,
      },
      svg("path", { d: link.path, class: "line", "stroke-width": link.width.toFixed(2) }),
      svg("path", { d: link.path, class: "reach" }),
      link.locked && svg("g", { transform: `translate(${link.x} ${link.y})`, class: "lock" }, padlock()),
    );
  }

  /** The link that an event happened on. */
  #linkOf({ target }: Event): Link | undefined {
    const id = target instanceof Element && target.closest<SVGElement>(".link")?.dataset.id;
    return this.#picture?.links.find((link) => link.id === id);
  }

  #showTip(event: PointerEvent): void {
    const link = this.#linkOf(event);
    if (!link) return;
    const edges = new Set(link.edges);
    const all = this.#document?.edges.filter(({ id }) => edges.has(id)) ?? [];
    const [first] = all;
    if (!first) return;
    const title = (id: string) => this.#picture?.shapes.find((shape) => shape.id === id)?.title ?? id;
    const rate = all.reduce((sum, edge) => sum + edge.rate.opened, 0);
    const failed = all.reduce((sum, edge) => sum + edge.rate.failed, 0);
    const share = all.length === 1 ? first.failureShare : failed / Math.max(rate, failed, 1e-9);
    this.#tip.replaceChildren(
      html("strong", {}, `${title(link.from)} → ${title(link.to)}`),
      html(
        "span",
        {},
        [
          ...[STATE_WORDS[link.state], formatRate(rate), `${formatShare(share)} failed`],
          ...(link.locked ? ["mutual TLS"] : []),
          ...(all.length > 1 ? [`${all.length} edges`] : []),
        ].join(" · "),
      ),
    );
    this.#tip.hidden = false;
    const box = this.element.getBoundingClientRect();
    const x = Math.min(event.clientX - box.left + 14, box.width - this.#tip.offsetWidth - 8);
    const y = Math.min(event.clientY - box.top + 16, box.height - this.#tip.offsetHeight - 8);
    this.#tip.style.transform = `translate(${x}px, ${y}px)`;
  }

  /** Which shape and links are selected, and which can be reached by Tab. */
  #mark(): void {
    const selected = this.#selected;
    const picture = this.#picture;
    if (!picture) return;
    const shapeId = selected === undefined ? undefined : this.#shapeOf(selected)?.id;
    const isNode =
      shapeId !== undefined &&
      (picture.shapes.some(({ id }) => id === selected) || !selected?.includes(" -> "));
    // Several edges that are drawn as one line are chosen together (joinEdges).
    const chosen = new Set(selected?.split("\n"));
    const lit = new Set<string>();
    const near = new Set<string>();
    for (const link of picture.links) {
      const isLit = isNode
        ? link.from === shapeId || link.to === shapeId
        : link.edges.some((edge) => chosen.has(edge));
      if (!isLit) continue;
      lit.add(link.id);
      near.add(link.from).add(link.to);
    }
    if (isNode && shapeId) near.add(shapeId);
    this.svg.classList.toggle("has-selection", near.size > 0);
    for (const [id, { element }] of this.#drawn) {
      element.classList.toggle("near", near.has(id));
      element.classList.toggle("selected", isNode && id === shapeId);
      element.setAttribute("tabindex", id === this.#current ? "0" : "-1");
      if (!element.hasAttribute("aria-expanded"))
        element.setAttribute("aria-pressed", String(isNode && id === shapeId));
    }
    for (const [id, { element }] of this.#drawnLinks) element.classList.toggle("lit", lit.has(id));
  }

  /** The shape of a node, a group or an edge's source. */
  #shapeOf(id: string): Shape | undefined {
    const { shapes = [] } = this.#picture ?? {};
    const direct =
      shapes.find((shape) => shape.id === id) ?? shapes.find(({ members }) => members.includes(id));
    if (direct) return direct;
    const link = this.#picture?.links.find((each) => each.id === id || each.edges.includes(id));
    return link && shapes.find((shape) => shape.id === link.from);
  }

  #activate(shape: Shape): void {
    this.#current = shape.id;
    if (shape.kind === "group") this.#listener.toggle(shape.id);
    else this.#listener.select(shape.id === this.#selected ? undefined : shape.id);
  }

  #focusedShape(): string | undefined {
    return document.activeElement?.closest<SVGElement>(".shape")?.dataset.id;
  }

  #onKey(event: KeyboardEvent): void {
    const picture = this.#picture;
    const shape = picture?.shapes.find(({ id }) => id === this.#current);
    if (!picture || !shape) return;
    const column = picture.shapes.filter((each) => each.column === shape.column);
    const at = column.indexOf(shape);
    const beside = (direction: 1 | -1) => {
      const linked = picture.links.flatMap(({ from, to }) => {
        const id =
          direction === 1 ? (from === shape.id ? to : undefined) : to === shape.id ? from : undefined;
        return picture.shapes.filter((each) => each.id === id);
      });
      const near =
        linked.length > 0
          ? linked
          : picture.shapes.filter((each) => each.column === shape.column + direction);
      return near.toSorted((a, b) => Math.abs(a.y - shape.y) - Math.abs(b.y - shape.y))[0];
    };
    const targets: Readonly<Record<string, () => Shape | undefined>> = {
      ArrowDown: () => column[at + 1],
      ArrowUp: () => column[at - 1],
      ArrowRight: () => beside(1),
      ArrowLeft: () => beside(-1),
      Home: () => column[0],
      End: () => column.at(-1),
    };
    const zoom = { "+": ZOOM.step, "=": ZOOM.step, "-": 1 / ZOOM.step }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = targets[event.key];
    if (zoom !== undefined) this.#zoomCentre(zoom);
    else if (event.key === "0") this.fit();
    else if (target) {
      event.preventDefault();
      const next = target();
      if (next) this.reveal(next.id, true);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#activate(shape);
    }
  }

  #listenToPointer(): void {
    const area = this.#window;
    let drag: { x: number; y: number; pointer: number; moved: boolean } | undefined;
    area.addEventListener("pointerdown", (event) => {
      if (event.button === 0)
        drag = { x: event.clientX, y: event.clientY, pointer: event.pointerId, moved: false };
    });
    area.addEventListener("pointermove", (event) => {
      if (!drag || drag.pointer !== event.pointerId) return;
      const dx = event.clientX - drag.x;
      const dy = event.clientY - drag.y;
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      if (!drag.moved) {
        area.setPointerCapture(event.pointerId);
        area.classList.add("dragging");
      }
      drag = { x: event.clientX, y: event.clientY, pointer: drag.pointer, moved: true };
      const { x, y, zoom } = this.#place;
      this.#move({ x: x + dx, y: y + dy, zoom });
    });
    const end = (event: PointerEvent) => {
      const wasDrag = drag?.moved === true;
      drag = undefined;
      area.classList.remove("dragging");
      const isBare = event.target === area || event.target === this.svg;
      if (wasDrag)
        area.addEventListener("click", (click) => click.stopPropagation(), { capture: true, once: true });
      else if (event.type === "pointerup" && isBare) this.#listener.select(undefined);
    };
    area.addEventListener("pointerup", end);
    area.addEventListener("pointercancel", end);
    area.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const { x, y, zoom } = this.#place;
        if (event.ctrlKey || event.metaKey) {
          const box = area.getBoundingClientRect();
          this.#zoomAt(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
        } else this.#move({ x: x - event.deltaX, y: y - event.deltaY, zoom });
      },
      { passive: false },
    );
  }

  #zoomCentre(factor: number): void {
    this.#zoomAt(factor, this.#size.width / 2, this.#size.height / 2);
  }

  /** Keeps the point of the map at (x, y) of the window where it is. */
  #zoomAt(factor: number, x: number, y: number): void {
    const zoom = Math.min(ZOOM.most, Math.max(ZOOM.least, this.#place.zoom * factor));
    const ratio = zoom / this.#place.zoom;
    this.#move({ x: x - (x - this.#place.x) * ratio, y: y - (y - this.#place.y) * ratio, zoom });
  }

  /** Takes effect at the next frame. */
  #move(place: { x: number; y: number; zoom: number }): void {
    this.#isMoved = true;
    this.#place = this.#bounded(place);
    this.#frame ||= requestAnimationFrame(() => this.#show());
  }

  /** A part of the map stays in sight. */
  #bounded({ x, y, zoom }: { x: number; y: number; zoom: number }): { x: number; y: number; zoom: number } {
    const { width = 0, height = 0 } = this.#picture ?? {};
    const keep = 80;
    const bound = (value: number, size: number, window: number) =>
      Math.min(Math.max(value, keep - size * zoom), Math.max(keep, window - keep));
    return { x: bound(x, width, this.#size.width), y: bound(y, height, this.#size.height), zoom };
  }

  /**
   * Shows the map at its place. The browser keeps the picture as a layer, which it moves without drawing it anew; only
   * another zoom draws it.
   */
  #show(): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const { width = 0, height = 0 } = this.#picture ?? {};
    const { x, y, zoom } = this.#place;
    setChanged(this.svg, "width", String(Math.ceil(width * zoom)));
    setChanged(this.svg, "height", String(Math.ceil(height * zoom)));
    setChanged(this.#scene, "transform", `scale(${zoom.toFixed(4)})`);
    // Whole pixels, or texts blur.
    this.svg.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  }
}

/** Sets an attribute only if its value differs, because the browser computes again what depends on it. */
function setChanged(element: Element, name: string, value: string): void {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** The legend of lines. The header explains shapes. */
function legend(): HTMLElement {
  const entry = (kind: string, text: string) =>
    html(
      "span",
      { class: "entry" },
      svg(
        "svg",
        { width: 26, height: 10, "aria-hidden": "true" },
        svg("g", { class: `link ${kind}` }, svg("path", { d: "M1 5h24", class: "line", "stroke-width": 2 })),
      ),
      text,
    );
  return html(
    "p",
    { class: "legend" },
    entry("failing", "failing"),
    entry("ok some-fail", "some fail"),
    entry("slow", "slow or lossy"),
    entry("ok", "healthy: wider has more connections"),
    entry("idle", "idle"),
    html(
      "span",
      { class: "entry" },
      svg("svg", { viewBox: "-9 -9 18 18", width: 16, height: 16, "aria-hidden": "true" }, padlock()),
      "mutual TLS",
    ),
  );
}
