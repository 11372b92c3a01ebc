/** The page in a real Chromium, from the real server: clicks, keys, both colour schemes, and axe-core's rules. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { Page } from "playwright-core";
import type { Node, Problem } from "../../src/telemetry/model.ts";
import { SIZE } from "../../src/topology/layout.ts";
import { PageServer } from "../../src/topology/page-server.ts";
import { Browser, missingBrowser } from "./browser.ts";
import { documentOf, edge, history, large, shop } from "./documents.ts";

// Several rounds of axe-core, on a busy machine.
setDefaultTimeout(60_000);
const why = missingBrowser();
if (why) console.warn(`skipped: page: ${why}`);
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** "rule: what it is about" for each violation. */
async function violations(page: Page): Promise<string[]> {
  await page.evaluate(AXE);
  return page.evaluate<string[]>(
    "axe.run().then(({ violations }) => violations.map(({ id, nodes }) => id + ': ' + nodes.map((node) => node.html).join(' | ').slice(0, 400)))",
  );
}

describe.skipIf(why !== undefined)("the page", () => {
  let browser: Browser;
  let server: PageServer;
  let document = shop();
  let fault: Error | undefined;
  const requests: string[] = [];
  beforeAll(async () => {
    browser = await Browser.start();
    server = await PageServer.listen(0, {
      edges: async () => {
        if (fault) throw fault;
        return document;
      },
      history: async (edge) => history(edge),
    });
    browser.context.on("request", (request) => requests.push(request.url()));
  });
  afterAll(async () => {
    server?.close();
    await browser?.close();
  });

  const shape = (page: Page, name: string) => page.locator(".shape", { hasText: name });
  /** Longer than the server gives the same body. */
  const wait = () => new Promise((resolve) => setTimeout(resolve, 600));
  /** Has the page ask for the document that is there now. */
  const refresh = async (page: Page) => {
    await wait();
    const answered = page.waitForResponse((response) => response.url().includes("edges?"));
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))");
    await answered;
  };
  const names = (page: Page) => page.locator(".shape .title").allTextContents();

  for (const scheme of ["light", "dark"] as const)
    test(`breaks no rule of axe-core, ${scheme}: map, details and table`, async () => {
      const { page, complaints } = await browser.open(server.url, scheme);
      expect(await page.locator("html").getAttribute("data-theme")).toBe(scheme);
      expect(await violations(page)).toEqual([]);
      await page.locator(".problem").first().click();
      await page.locator(".chart").first().waitFor();
      expect(await violations(page)).toEqual([]);
      await page.getByRole("button", { name: "Table", exact: true }).click();
      expect(await violations(page)).toEqual([]);
      // Nothing moves by itself, so there is nothing that prefers-reduced-motion would stop.
      expect(await page.evaluate<number>("document.getAnimations().length")).toBe(0);
      expect(complaints).toEqual([]);
      await page.close();
    });

  test("breaks no rule when it is empty, on a phone, with groups, and when no agent answers", async () => {
    document = documentOf([], []);
    const { page, complaints } = await browser.open(server.url, "light", "none in this time");
    expect(await page.locator(".empty").textContent()).toContain("kmesh status");
    expect(await violations(page)).toEqual([]);
    document = large(200, 600);
    await refresh(page);
    await page.locator(".shape.group").first().click();
    await page.setViewportSize({ width: 420, height: 800 });
    expect(await violations(page)).toEqual([]);
    fault = new Error("No agent runs");
    await refresh(page);
    await page.getByRole("alert").waitFor();
    expect(await violations(page)).toEqual([]);
    // The browser itself logs the status of the answer.
    expect(complaints.filter((text) => !text.includes("502"))).toEqual([]);
    fault = undefined;
    document = shop();
    await page.close();
  });

  test("by keys alone: from a unit to an edge with its curves, and back", async () => {
    const { page } = await browser.open(server.url);
    const press = async (...keys: string[]) => {
      for (const key of keys) await page.keyboard.press(key);
    };
    /** Presses Tab until `selector` has the focus. */
    const tabTo = async (selector: string) => {
      const isThere = `document.activeElement.matches(${JSON.stringify(selector)})`;
      for (let i = 0; i < 60 && !(await page.evaluate<boolean>(isThere)); i++) await press("Tab");
      expect(await page.evaluate<boolean>(isThere)).toBe(true);
    };
    await tabTo(".shape");
    await press("ArrowRight", "Enter");
    await tabTo(".edges button");
    await press("Enter");
    await page.locator(".chart canvas").first().waitFor();
    expect(await page.locator(".link.lit").count()).toBe(1);
    await press("Escape");
    expect(await page.locator(".details").isVisible()).toBe(false);
    const zoom = () => page.evaluate<string>("document.querySelector('.scene').getAttribute('transform')");
    await shape(page, "billing.service").focus();
    const before = await zoom();
    await press("+");
    await page.waitForFunction(
      `document.querySelector(".scene").getAttribute("transform") !== ${JSON.stringify(before)}`,
    );
    await page.close();
  });

  test("shows names as text, whatever they hold, and cuts the middle of long ones", async () => {
    const evil = `<img src=x onerror="document.title='hit'">`;
    const long = `${"reviews-of-the-recommendation-".repeat(3)}v2.service`;
    const from: Node = { kind: "unit", id: `unit:${evil}`, name: evil, namespace: evil, source: "unit" };
    const to: Node = { kind: "outside", id: `outside:${long}`, name: long, namespace: "", unknown: evil };
    const call = edge({ from: from.id, to: to.id, kind: "passed", recent: { opened: 5 } });
    const problem: Problem = {
      ...{ subject: call.id, rule: "reset", severity: "error", value: 1 },
      ...{ text: evil, next: evil },
    };
    document = documentOf([from, to], [call], [problem]);
    document.machine.host = evil;
    document.limits.off.push(evil);
    await wait();
    const { page, complaints } = await browser.open(server.url);
    for (const open of [".problem", ".shape.unit", ".shape.outside"]) {
      await page.locator(open).first().click();
      expect(await page.locator("img").count()).toBe(0);
    }
    expect(await names(page)).toEqual([
      expect.stringMatching(/^<img.*…/),
      expect.stringMatching(/^reviews.*….*v2\.service$/),
    ]);
    const widths = await page.evaluate<number[]>(
      "[...document.querySelectorAll('.shape')].map((each) => each.querySelector('.title').getBBox().width)",
    );
    for (const width of widths) expect(width).toBeLessThan(SIZE.width - 36);
    await page.getByRole("button", { name: "Table", exact: true }).click();
    expect(await page.locator("img").count()).toBe(0);
    expect(await page.title()).toStartWith("kmesh topology: <img");
    expect(complaints).toEqual([]);
    document = shop();
    await wait();
    await page.close();
  });

  test("a problem leads to its place, with numbers, curves and commands; Escape leads back", async () => {
    const { page } = await browser.open(server.url);
    await page.locator(".problem").first().click();
    const details = page.getByRole("region", { name: "Details" });
    expect(await details.textContent()).toContain("300 (100 %)");
    expect(await details.textContent()).toContain("kmesh explain payments.shop.svc.cluster.local:443");
    expect(await page.locator(".link.lit.failing").count()).toBe(1);
    await page.locator(".chart canvas").first().waitFor();
    await page.keyboard.press("Escape");
    expect(await details.isVisible()).toBe(false);
    await page.close();
  });

  test("the map is walked by keys", async () => {
    const { page } = await browser.open(server.url);
    const focused = () => page.evaluate<string>("document.activeElement.querySelector('title').textContent");
    await shape(page, "frontend-v1").focus();
    await page.keyboard.press("ArrowRight");
    expect(await focused()).toStartWith("Unit billing.service, failing");
    await page.keyboard.press("ArrowRight");
    expect(await focused()).toStartWith("Service payments:443, failing");
    await page.keyboard.press("ArrowDown");
    expect(await focused()).toStartWith("Service stock:9090, slow or lossy");
    await page.keyboard.press("Enter");
    expect(await page.getByRole("region", { name: "Details" }).textContent()).toContain("stock:9090");
    await page.keyboard.press("Escape");
    // One stop for Tab.
    expect(await page.locator('.shape[tabindex="0"]').count()).toBe(1);
    await page.keyboard.press("/");
    await page.keyboard.type("ledger");
    expect(await names(page)).toEqual(["report-worker.service", "ledger:5432", "ledger-0"]);
    await page.close();
  });

  test("filters, idle edges, the table and the reason of an unknown name", async () => {
    const { page } = await browser.open(server.url);
    expect(await names(page)).not.toContain("cron.service");
    await page.getByLabel("Show idle").check();
    expect(await names(page)).toContain("cron.service");
    await page.getByLabel("Failing only").check();
    expect(await names(page)).not.toContain("orders-v1");
    await page.getByLabel("Failing only").uncheck();
    await page.getByLabel("Namespace", { exact: true }).selectOption("finance");
    expect(await names(page)).toEqual(["report-worker.service", "ledger:5432", "ledger-0"]);
    await page.getByLabel("Namespace", { exact: true }).selectOption("");
    await shape(page, "192.0.2.80").click();
    expect(await page.getByRole("region", { name: "Details" }).textContent()).toContain(
      "istiod names no workload",
    );
    await shape(page, "ledger:5432").click();
    await page.locator(".edges button", { hasText: "ledger-0" }).click();
    const details = await page.getByRole("region", { name: "Details" }).textContent();
    expect(details).toContain("mutual TLS, by HBONE");
    expect(details).toContain("spiffe://cluster.local/ns/finance/sa/ledger");
    expect(await page.locator(".links .lock").count()).toBe(2);
    await page.getByRole("button", { name: "Table", exact: true }).click();
    expect(await page.locator("tbody tr", { hasText: "by HBONE" }).count()).toBe(2);
    expect(await page.locator("tbody tr").count()).toBe(14);
    await page.getByRole("button", { name: "Sent", exact: true }).click();
    expect(await page.locator("tbody tr").first().textContent()).toContain("frontend-v1");
    await page.close();
  });

  test("a refresh keeps zoom, selection, focus and places; a new problem is said; an agent that is gone, too", async () => {
    const { page } = await browser.open(server.url);
    await page.getByRole("button", { name: "Zoom in" }).click();
    await shape(page, "orders:8080").click();
    const state = () =>
      page.evaluate<string>(
        "JSON.stringify([document.querySelector('.scene').getAttribute('transform'), document.querySelector('.map').style.transform, document.activeElement.getAttribute('data-id'), document.querySelector('.shape.selected')?.dataset.id, [...document.querySelectorAll('.shape')].map((s) => [s.dataset.id, s.getAttribute('transform')])])",
      );
    const before = await state();
    const changed = shop();
    document = {
      ...changed,
      at: "2026-01-05T10:00:05.000Z",
      edges: changed.edges.map((each) =>
        each.to.includes("ledger") ? { ...each, state: "failing" as const } : each,
      ),
      problems: [
        {
          subject: "service:ledger.finance.svc.cluster.local:5432",
          rule: "overloaded",
          severity: "warning",
          text: "99 of 100",
          value: 99,
          next: "",
        },
        ...changed.problems,
      ],
    };
    await refresh(page);
    await page.locator(".shape.service.failing", { hasText: "ledger" }).waitFor();
    expect(await state()).toBe(before);
    expect(await page.locator("[aria-live]").textContent()).toBe("New problem: 99 of 100");
    await page.getByRole("button", { name: "Sort by trouble" }).click();
    expect(await state()).not.toBe(before);
    fault = new Error("No agent runs");
    await refresh(page);
    await page.getByRole("alert").waitFor();
    expect(await page.getByRole("alert").textContent()).toStartWith("No agent runs. This is the state of");
    fault = undefined;
    document = shop();
    await page.close();
  });

  test("exports PNG, SVG and JSON", async () => {
    const { page, complaints } = await browser.open(server.url);
    const starts = { PNG: "\x89PNG", SVG: "<svg", JSON: "{" };
    for (const [format, start] of Object.entries(starts)) {
      const saved = page.waitForEvent("download");
      await page.getByRole("button", { name: `Export as ${format}` }).click();
      const file = await (await saved).path();
      expect(readFileSync(file, "latin1").slice(0, start.length)).toBe(start);
    }
    expect(complaints).toEqual([]);
    await page.close();
  });

  test("500 nodes and 2,000 edges are at most 60 shapes; a group unfolds", async () => {
    document = large(500, 2_000);
    const { page, complaints } = await browser.open(server.url);
    const count = await page.locator(".shape").count();
    expect(count).toBeLessThanOrEqual(60);
    expect(await page.locator(".links .link.failing").count()).toBe(8);
    // A line of many edges lists them.
    const line = page.locator('.link[data-id^="unit:"][data-id*="group:2"]').first();
    await line.dispatchEvent("click");
    expect(await page.getByRole("region", { name: "Details" }).textContent()).toMatch(/\d+ edges/);
    expect(await page.locator(".link.lit").count()).toBe(1);
    await page.locator(".shape.group").first().click();
    expect(await page.locator(".shape").count()).toBeGreaterThan(count);
    // A drag moves the map, which is not drawn anew, and chooses nothing else.
    const place = () => page.evaluate<string>("document.querySelector('.map').style.transform");
    const chosen = await page.locator(".link.lit").count();
    const before = await place();
    await page.mouse.move(200, 700);
    await page.mouse.down();
    await page.mouse.move(260, 650, { steps: 4 });
    await page.mouse.up();
    await page.waitForFunction(
      `document.querySelector(".map").style.transform !== ${JSON.stringify(before)}`,
    );
    expect(await place()).not.toBe(before);
    expect(await page.locator(".link.lit").count()).toBe(chosen);
    expect(complaints).toEqual([]);
    document = shop();
    await page.close();
  });

  test("asks nobody but its server, and shows no token in the address", async () => {
    const { page } = await browser.open(server.url);
    expect(page.url()).toBe(`http://127.0.0.1:${server.port}/topology/`);
    expect(await page.reload().then((response) => response?.status())).toBe(200);
    await page.locator(".shape").first().waitFor();
    const foreign = requests.filter(
      (url) => !url.startsWith(`http://127.0.0.1:${server.port}/`) && !/^(data|blob):/.test(url),
    );
    expect(foreign).toEqual([]);
    await page.close();
  });
});
