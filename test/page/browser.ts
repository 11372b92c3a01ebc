/** Debian's Chromium, started for a test and gone with it. */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BrowserContext, chromium, type Page } from "playwright-core";

const CHROMIUM = "/usr/bin/chromium";

/** Why there is no browser; undefined when there is one. */
export function missingBrowser(): string | undefined {
  return existsSync(CHROMIUM) ? undefined : `${CHROMIUM} is missing: run build/setup --test`;
}

export class Browser {
  readonly #folder: string;
  readonly context: BrowserContext;

  private constructor(folder: string, context: BrowserContext) {
    this.#folder = folder;
    this.context = context;
  }

  static async start(viewport = { width: 1400, height: 860 }): Promise<Browser> {
    const folder = mkdtempSync(join(tmpdir(), "kmesh-page-"));
    const context = await chromium.launchPersistentContext(join(folder, "profile"), {
      executablePath: CHROMIUM,
      headless: true,
      viewport,
      acceptDownloads: true,
      args: [
        ...["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
        ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
      ],
    });
    return new Browser(folder, context);
  }

  /** Waits for the first shape, or a text. With what the page complained of. */
  async open(
    url: string,
    colorScheme: "light" | "dark" = "light",
    text?: string,
  ): Promise<{ page: Page; complaints: string[] }> {
    const page = await this.context.newPage();
    await page.emulateMedia({ colorScheme });
    const complaints: string[] = [];
    page.on("pageerror", (error) => complaints.push(error.message));
    page.on("console", (message) => {
      if (message.type() === "error") complaints.push(message.text());
    });
    await page.goto(url);
    await (text === undefined ? page.locator(".shape") : page.getByText(text)).first().waitFor();
    return { page, complaints };
  }

  async close(): Promise<void> {
    await this.context.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
