/**
 * The page with 500 nodes and 2,000 edges in a real Chromium: time from navigation to the first picture, and intervals of
 * frames while the map is dragged. Drawn by the processor, as where no graphics card is. Run: bun bench/page.ts
 */
import { PageServer } from "../src/topology/page-server.ts";
import { Browser } from "../test/page/browser.ts";
import { history, large } from "../test/page/documents.ts";
import { flagsOf } from "./lab/flags.ts";

flagsOf({});

const RUNS = 10;
const document = large(500, 2_000);
const server = await PageServer.listen(0, {
  edges: async () => document,
  history: async (edge) => history(edge),
});
const browser = await Browser.start();
const drawn: number[] = [];
const frames: number[] = [];
for (let run = 0; run < RUNS; run++) {
  const page = await browser.context.newPage();
  await page.addInitScript(
    "new MutationObserver(() => { if (!window.drawnAt && document.querySelector('.shape')) requestAnimationFrame(() => setTimeout(() => { if (!window.drawnAt) console.log('drawn'); window.drawnAt ??= performance.now(); })); }).observe(document, { childList: true, subtree: true });",
  );
  // The page says it: to ask for it would run code of ours in the page meanwhile.
  const said = page.waitForEvent("console", (message) => message.text() === "drawn");
  await page.goto(server.url, { waitUntil: "commit" });
  await said;
  drawn.push(await page.evaluate<number>("window.drawnAt"));
  await page.waitForTimeout(300);
  await page.evaluate(
    "window.times = []; (function tick(now) { window.times.push(now); requestAnimationFrame(tick); })(performance.now());",
  );
  await page.mouse.move(200, 700);
  await page.mouse.down();
  for (let step = 0; step < 90; step++) await page.mouse.move(200 + (step % 30) * 6, 700 - step * 3);
  await page.mouse.up();
  const times = await page.evaluate<number[]>("window.times");
  frames.push(...times.slice(2).map((time, index) => time - (times[index + 1] ?? time)));
  await page.close();
}
await browser.close();
server.close();
const at = (values: number[], share: number) =>
  values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) * share)] ?? 0;
const ms = (value: number) => `${value.toFixed(1)} ms`;
const line = (what: string, values: number[]) =>
  console.log(
    `${what}: least ${ms(at(values, 0))}, median ${ms(at(values, 0.5))}, p95 ${ms(at(values, 0.95))} of ${values.length}`,
  );
line("first picture", drawn);
line("frames while dragging", frames);
