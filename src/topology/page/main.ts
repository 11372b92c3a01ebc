/** The page of `kmesh topology --open`: asks for the document, and draws it as map, table and panel. */
import type { EdgesDocument } from "../../telemetry/model.ts";
import { type Filter, filterDocument, NO_FILTER } from "../filter.ts";
import { formatClock } from "../format.ts";
import { layout, type Picture } from "../layout.ts";
import { fetchDocument, fetchHistory } from "./api.ts";
import { html } from "./dom.ts";
import { exportJson, exportPng, exportSvg } from "./export.ts";
import { MapView } from "./map.ts";
import { joinEdges, SideView } from "./side.ts";
import { icon } from "./symbols.ts";
import { TableView } from "./table.ts";

/** Milliseconds between two documents. */
const REFRESH = 5_000;
/** Seconds that the first document covers. */
const FIRST_WINDOW = 300;
const WINDOWS: readonly (readonly [number, string])[] = [
  [60, "1 minute"],
  [300, "5 minutes"],
  [900, "15 minutes"],
  [3600, "1 hour"],
];
const THEMES = ["auto", "light", "dark"] as const;
const THEME_KEY = "kmesh-theme";

class Page {
  #document: EdgesDocument | undefined;
  #picture: Picture | undefined;
  #filter: Filter = NO_FILTER;
  #window = FIRST_WINDOW;
  #selected: string | undefined;
  #view: "map" | "table" = "map";
  #ranks = new Map<string, number>();
  readonly #unfolded = new Set<string>();
  #isPaused = false;
  #timer = 0;
  #asked = 0;

  readonly #map = new MapView({
    select: (id) => this.#selectLink(id),
    toggle: (group) => this.#toggle(group),
  });
  readonly #table = new TableView((id) => this.#select(id));
  readonly #side = new SideView({ select: (id) => this.#select(id, true), history: fetchHistory });

  readonly #machine = html("p", { class: "machine" });
  readonly #summary = html("p", { class: "summary" });
  readonly #fresh = html("span", { class: "fresh" });
  readonly #fault = html("div", { class: "fault", role: "alert", hidden: true });
  readonly #news = html("div", { class: "hidden-text", "aria-live": "polite", role: "status" });
  readonly #namespaces = html("select", {
    "aria-label": "Namespace",
    change: (event) => this.#narrow({ namespace: chosen(event) }),
  });
  readonly #units = html("select", {
    "aria-label": "Unit",
    change: (event) => this.#narrow({ unit: chosen(event) }),
  });
  readonly #search = html("input", {
    type: "search",
    placeholder: "Search  /",
    "aria-label": "Search names, hosts, namespaces and addresses",
    input: (event) => this.#narrow({ search: chosen(event) }),
  });
  readonly #resort = html(
    "button",
    { type: "button", class: "resort", hidden: true, click: () => this.#sortAnew() },
    "Sort by trouble",
  );
  readonly #empty = html("p", { class: "empty", hidden: true });
  readonly #theme = html("button", { type: "button", click: () => this.#nextTheme() });
  readonly #pause = html(
    "button",
    { type: "button", "aria-pressed": "false", click: () => this.#togglePause() },
    "Pause",
  );
  readonly #tabs = {
    map: html("button", { type: "button", "aria-pressed": "true", click: () => this.#show("map") }, "Map"),
    table: html(
      "button",
      { type: "button", "aria-pressed": "false", click: () => this.#show("table") },
      "Table",
    ),
  };

  /** `first` is the document that was asked for already. */
  start(first: Promise<EdgesDocument>): void {
    setTheme(themeNow());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(themeNow()));
    this.#theme.textContent = themeWord();
    const window = html(
      "select",
      {
        "aria-label": "Time",
        change: (event) => {
          this.#window = Number(chosen(event));
          void this.#refresh();
        },
      },
      ...WINDOWS.map(([seconds, text]) =>
        html("option", { value: seconds, selected: seconds === this.#window }, `Last ${text}`),
      ),
    );
    const toggle = (text: string, change: (on: boolean) => Partial<Filter>) =>
      html(
        "label",
        { class: "switch" },
        html("input", {
          type: "checkbox",
          change: (event) => this.#narrow(change((event.target as HTMLInputElement).checked)),
        }),
        text,
      );
    document.body.replaceChildren(
      html(
        "header",
        {},
        html(
          "div",
          { class: "brand" },
          html("h1", {}, "kmesh", html("span", {}, " topology")),
          this.#machine,
        ),
        this.#summary,
        html("div", { class: "tools" }, this.#fresh, this.#pause, this.#theme),
      ),
      html(
        "nav",
        { class: "bar", "aria-label": "View and filters" },
        html("div", { class: "tabs", role: "group", "aria-label": "View" }, this.#tabs.map, this.#tabs.table),
        window,
        this.#search,
        this.#namespaces,
        this.#units,
        toggle("Failing only", (failing) => ({ failing })),
        toggle("Show idle", (idle) => ({ idle })),
        this.#resort,
        html(
          "div",
          { class: "export", role: "group", "aria-label": "Export" },
          html("span", { "aria-hidden": "true" }, "Export"),
          ...exports(() => ({ picture: this.#picture, document: this.#document, svg: this.#map.svg })),
        ),
      ),
      this.#fault,
      html(
        "main",
        {},
        html("div", { class: "stage" }, this.#map.element, this.#table.element, this.#empty),
        this.#side.element,
      ),
      this.#news,
    );
    this.#table.element.hidden = true;
    addEventListener("keydown", (event) => this.#onKey(event));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) void this.#refresh();
    });
    void this.#refresh(first);
  }

  /** One at a time; the next is asked for when this one is here. */
  async #refresh(coming = fetchDocument(this.#window)): Promise<void> {
    clearTimeout(this.#timer);
    const asked = ++this.#asked;
    try {
      const got = await coming;
      if (asked !== this.#asked) return;
      this.#tellNews(got);
      this.#document = got;
      this.#fault.hidden = true;
      this.#fresh.textContent = `at ${formatClock(new Date(got.at), true)}`;
      this.#draw();
    } catch (error) {
      if (asked !== this.#asked) return;
      const since = this.#document
        ? ` This is the state of ${formatClock(new Date(this.#document.at), true)}.`
        : "";
      this.#fault.textContent = `${error instanceof Error ? error.message : String(error)}.${since}`;
      this.#fault.hidden = false;
    }
    if (!this.#isPaused && !document.hidden)
      this.#timer = window.setTimeout(() => void this.#refresh(), REFRESH);
  }

  #draw(): void {
    const whole = this.#document;
    if (!whole) return;
    const part = filterDocument(whole, this.#filter);
    this.#picture = layout(part, { unfolded: this.#unfolded, ranks: this.#ranks });
    // Of nodes that are hidden now, too: they come back where they were.
    for (const [id, rank] of this.#picture.ranks) this.#ranks.set(id, rank);
    // First: the map asks for its size, which the browser knows until something else changes.
    if (this.#view === "map") this.#map.draw(this.#picture, part, this.#selected);
    else this.#table.draw(part, this.#selected);
    const { host, workload, namespace } = whole.machine;
    document.title = `kmesh topology: ${host}`;
    this.#machine.textContent = [
      host,
      workload === "unknown" || workload === host ? "" : workload,
      namespace === "" ? "" : `namespace ${namespace}`,
    ]
      .filter(Boolean)
      .join(" · ");
    this.#drawSummary(whole);
    options(
      this.#namespaces,
      "All namespaces",
      [...new Set(whole.nodes.map((node) => node.namespace))]
        .filter(Boolean)
        .sort()
        .map((name) => [name, name]),
    );
    options(
      this.#units,
      "All units",
      whole.nodes.filter(({ kind }) => kind === "unit").map(({ id, name }) => [id, name]),
    );
    this.#resort.hidden = !this.#picture.stale || this.#view !== "map";
    this.#empty.hidden = part.nodes.length > 0;
    this.#empty.textContent =
      whole.edges.length === 0
        ? "No connection was counted yet. Connections of governed units and to this machine's services appear here; kmesh status names them."
        : whole.edges.every(({ state }) => state === "idle") && !this.#filter.idle
          ? "No traffic in this time. “Show idle” shows what there was before."
          : "Nothing matches these filters.";
    this.#side.draw({ ...whole, problems: part.problems }, this.#selected);
  }

  #drawSummary({ edges }: EdgesDocument): void {
    const words = { failing: "failing", slow: "slow or lossy", ok: "healthy", idle: "idle" } as const;
    this.#summary.replaceChildren(
      ...(["failing", "slow", "ok", "idle"] as const).map((state) => {
        const count = edges.filter((edge) => edge.state === state).length;
        return html(
          "span",
          { class: count === 0 ? `${state} zero` : state },
          icon(state),
          `${count} ${words[state]}`,
        );
      }),
    );
  }

  /** Says new problems to a screen reader; not the ones that are there already. */
  #tellNews({ problems }: EdgesDocument): void {
    const key = ({ rule, subject }: EdgesDocument["problems"][number]) => `${rule} ${subject}`;
    const known = new Set(this.#document?.problems.map(key));
    const fresh = problems.filter((problem) => problem.severity !== "info" && !known.has(key(problem)));
    const [first] = fresh;
    if (!first) return;
    this.#news.textContent =
      fresh.length === 1 ? `New problem: ${first.text}` : `${fresh.length} new problems. ${first.text}`;
  }

  #narrow(change: Partial<Filter>): void {
    this.#filter = { ...this.#filter, ...change };
    this.#draw();
  }

  #sortAnew(): void {
    this.#ranks = new Map();
    this.#draw();
  }

  #select(id: string | undefined, reveal = false): void {
    this.#selected = id;
    this.#draw();
    if (id !== undefined && reveal && this.#view === "map") this.#map.reveal(id, false);
  }

  #selectLink(id: string | undefined): void {
    const link = this.#picture?.links.find((each) => each.id === id && each.edges.length > 1);
    this.#select(link ? joinEdges(link.edges) : id);
  }

  #toggle(group: string): void {
    if (!this.#unfolded.delete(group)) this.#unfolded.add(group);
    this.#draw();
  }

  #show(view: "map" | "table"): void {
    this.#view = view;
    this.#map.element.hidden = view !== "map";
    this.#table.element.hidden = view !== "table";
    for (const name of ["map", "table"] as const)
      this.#tabs[name].setAttribute("aria-pressed", String(name === view));
    this.#draw();
  }

  #togglePause(): void {
    this.#isPaused = !this.#isPaused;
    this.#pause.setAttribute("aria-pressed", String(this.#isPaused));
    this.#pause.textContent = this.#isPaused ? "Resume" : "Pause";
    if (this.#isPaused) clearTimeout(this.#timer);
    else void this.#refresh();
  }

  #nextTheme(): void {
    const next = THEMES[(THEMES.indexOf(themeNow()) + 1) % THEMES.length] ?? "auto";
    localStorage.setItem(THEME_KEY, next);
    setTheme(next);
    this.#theme.textContent = themeWord();
    this.#draw();
  }

  #onKey(event: KeyboardEvent): void {
    const isTyping = event.target instanceof HTMLInputElement && event.target.type === "search";
    if (event.key === "Escape") {
      if (isTyping && this.#search.value !== "") {
        this.#search.value = "";
        this.#narrow({ search: "" });
      } else this.#select(undefined);
    } else if (event.key === "/" && !isTyping) {
      event.preventDefault();
      this.#search.focus();
    }
  }
}

function exports(
  now: () => { picture: Picture | undefined; document: EdgesDocument | undefined; svg: SVGSVGElement },
): HTMLElement[] {
  const button = (
    text: string,
    save: (state: { picture: Picture; document: EdgesDocument; svg: SVGSVGElement }) => void,
  ) =>
    html(
      "button",
      {
        type: "button",
        "aria-label": `Export as ${text}`,
        click: () => {
          const { picture, document, svg } = now();
          if (picture && document) save({ picture, document, svg });
        },
      },
      text,
    );
  return [
    button("PNG", ({ picture, svg }) => void exportPng(svg, picture)),
    button("SVG", ({ picture, svg }) => exportSvg(svg, picture)),
    button("JSON", ({ document }) => exportJson(document)),
  ];
}

/** Only when they differ: a list that is open must not close. */
function options(
  select: HTMLSelectElement,
  all: string,
  entries: readonly (readonly [string, string])[],
): void {
  const wanted = JSON.stringify(entries);
  if (select.dataset.entries === wanted) return;
  const { value } = select;
  select.dataset.entries = wanted;
  select.replaceChildren(
    html("option", { value: "" }, all),
    ...entries.map(([id, name]) => html("option", { value: id, selected: id === value }, name)),
  );
}

function chosen(event: Event): string {
  return (event.target as HTMLInputElement | HTMLSelectElement).value;
}

function themeNow(): (typeof THEMES)[number] {
  const kept = localStorage.getItem(THEME_KEY);
  return THEMES.find((theme) => theme === kept) ?? "auto";
}

function themeWord(): string {
  return `Theme: ${themeNow()}`;
}

function setTheme(theme: (typeof THEMES)[number]): void {
  const isDark = theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
}

// Asked for before the page is built, so that the answer comes meanwhile.
const first = fetchDocument(FIRST_WINDOW);
new Page().start(first);
