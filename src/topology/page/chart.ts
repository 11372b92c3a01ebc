/** The last hour of an edge as curves. */
import uPlot from "uplot";
import type { EdgeHistory } from "../../telemetry/model.ts";
import { formatBytes, formatClock, formatCount, formatMicroseconds, formatRate } from "../format.ts";
import { html } from "./dom.ts";

interface Kind {
  title: string;
  series: { name: string; colour: string; values(history: EdgeHistory): number[] }[];
  format(value: number): string;
}

/** Seconds. */
const LEAST_SPAN = 600;

const perSecond = (values: number[], { step }: EdgeHistory) => values.map((value) => value / step);

const KINDS: readonly Kind[] = [
  {
    title: "Connections per second",
    series: [
      { name: "opened", colour: "--accent", values: (history) => perSecond(history.opened, history) },
      { name: "failed", colour: "--failing", values: (history) => perSecond(history.failed, history) },
    ],
    format: formatRate,
  },
  {
    title: "Bytes per second",
    series: [
      { name: "sent", colour: "--accent", values: (history) => perSecond(history.sent, history) },
      { name: "received", colour: "--second", values: (history) => perSecond(history.received, history) },
    ],
    format: (value) => `${formatBytes(value)}/s`,
  },
  {
    title: "Round trip",
    series: [{ name: "mean", colour: "--accent", values: ({ rtt }) => rtt }],
    format: formatMicroseconds,
  },
  {
    title: "Retransmitted segments",
    series: [{ name: "segments", colour: "--slow", values: ({ retransmits }) => retransmits }],
    format: formatCount,
  },
];

/** The curves that have anything to show; the first is drawn in any case. `width` in pixels. */
export function charts(history: EdgeHistory, width: number): HTMLElement {
  const shown = KINDS.filter(
    ({ series }, index) =>
      index === 0 || series.some(({ values }) => values(history).some((value) => value > 0)),
  );
  return html("div", { class: "charts" }, ...shown.map((kind) => chart(kind, history, width)));
}

function chart({ title, series, format }: Kind, history: EdgeHistory, width: number): HTMLElement {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const data = series.map(({ values }) => values(history));
  const end = Date.parse(history.at) / 1000;
  const count = data[0]?.length ?? 0;
  const times = Array.from({ length: count }, (_, index) => end - (count - 1 - index) * history.step);
  const highest = Math.max(0, ...data.flat());
  const values = series.map(() => html("b"));
  const when = html("span", { class: "when" });
  /** The values of a step, or the last ones. */
  const say = (at: number | null | undefined) => {
    values.forEach((value, index) => {
      value.textContent = format((at == null ? data[index]?.at(-1) : data[index]?.[at]) ?? 0);
    });
    when.textContent = at == null ? "now" : `at ${formatClock(new Date((times[at] ?? end) * 1000), true)}`;
  };
  say(null);
  const legend = series.map(({ name, colour: variable }, index) => {
    // The second line is dashed: colour alone is not for everybody.
    const mark = html("i", { class: index === 0 ? "" : "dashed", "aria-hidden": "true" });
    mark.style.color = colour(variable);
    return html("span", {}, mark, `${name} `, values[index]);
  });
  const place = html("div", {
    class: "plot",
    role: "img",
    "aria-label": `${title}, the last hour: ${series.map(({ name }, index) => `${name} is ${format(data[index]?.at(-1) ?? 0)} now and ${format(Math.max(0, ...(data[index] ?? [])))} at most`).join(", ")}`,
  });
  const axis = {
    stroke: colour("--muted"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
  };
  new uPlot(
    {
      width,
      height: 104,
      padding: [6, null, null, null],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      hooks: { setCursor: [({ cursor }) => say(cursor.idx)] },
      // An agent that has just begun has few steps.
      scales: {
        x: { range: [Math.min(times[0] ?? end, end - LEAST_SPAN), end] },
        y: { range: [0, highest > 0 ? highest * 1.15 : 1] },
      },
      axes: [
        {
          ...axis,
          size: 26,
          space: 60,
          values: (_, at) => at.map((time) => formatClock(new Date(time * 1000))),
        },
        { ...axis, size: 66, space: 28, values: (_, at) => at.map((value) => format(value)) },
      ],
      series: [
        {},
        ...series.map(({ colour: variable }, index) => ({
          stroke: colour(variable),
          width: 1.5,
          ...(index === 0 ? {} : { dash: [5, 3] }),
          points: { show: count < 3, size: 4 },
        })),
      ],
    },
    [times, ...data],
    place,
  );
  return html(
    "figure",
    { class: "chart" },
    html("figcaption", {}, html("strong", {}, title), when, ...legend),
    place,
  );
}
