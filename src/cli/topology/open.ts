/** `kmesh topology --open`: serves the page until Ctrl-C. */
import { spawn } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { hostname, userInfo } from "node:os";
import { join } from "node:path";
import { AdminError } from "../../admin/client.ts";
import type { Folders } from "../../config/config.ts";
import { codeOf, reasonOf } from "../../errors/reason.ts";
import type { EdgeHistory, EdgesDocument } from "../../telemetry/model.ts";
import { type PageData, PageServer } from "../../topology/page-server.ts";
import { EXIT, Failure } from "../framework/exit.ts";
import { print } from "../framework/output.ts";
import { view } from "../framework/view.ts";

/** `take` gives the document of so many seconds. `port` 0 is a free one. Throws Failure when the port is taken. */
export async function openPage(
  folders: Folders,
  take: (window: number) => Promise<EdgesDocument>,
  port: number,
  window: number,
): Promise<void> {
  // Before a page is promised: without an agent and anything pinned there is nothing to show.
  await take(window);
  const data: PageData = {
    edges: take,
    async history(edge) {
      try {
        const path = `/edges/history?edge=${encodeURIComponent(edge)}`;
        const { value } = await view<EdgeHistory | undefined>(folders, path, () => undefined);
        return value;
      } catch (error) {
        if (error instanceof AdminError && error.status === 400) return undefined;
        throw error;
      }
    },
  };
  const server = await PageServer.listen(port, data).catch((error) => {
    const next = codeOf(error) === "EADDRINUSE" ? "Choose another --port, or none for a free one." : "";
    throw new Failure(EXIT.failed, `the page can't be served on port ${port}: ${reasonOf(error)}`, next);
  });
  try {
    print(opening(server, process.env));
    if (hasDisplay(process.env)) openBrowser(server.url);
    await new Promise<void>((resolve) => {
      for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => resolve());
    });
  } finally {
    server.close();
  }
}

/** The URL, and how to reach it from elsewhere. */
export function opening(
  { url, port }: Pick<PageServer, "url" | "port">,
  environment: NodeJS.ProcessEnv,
): string {
  const lines = ["The map is at", "", `  ${url}`, ""];
  if (!hasDisplay(environment))
    lines.push(
      "From another computer, run this there first, and then open the same URL there:",
      "",
      `  ssh -L ${port}:127.0.0.1:${port} ${sshTarget(environment)}`,
      "",
    );
  lines.push("The URL holds a secret: whoever has it sees the map. Ctrl-C ends it.");
  return lines.join("\n");
}

/** As the operator reached this machine. */
function sshTarget({ SUDO_USER, USER, SSH_CONNECTION }: NodeJS.ProcessEnv): string {
  const address = SSH_CONNECTION?.split(" ")[2];
  // Without USER the runtime's userInfo() names nobody.
  const user = SUDO_USER ?? USER ?? (process.geteuid?.() === 0 ? "root" : userInfo().username);
  return `${user}@${address ?? hostname()}`;
}

function hasDisplay({ DISPLAY, WAYLAND_DISPLAY }: NodeJS.ProcessEnv): boolean {
  return Boolean(DISPLAY || WAYLAND_DISPLAY);
}

/** Where xdg-open exists. That no browser starts is no fault: the URL is printed. */
function openBrowser(url: string): void {
  const program = (process.env.PATH ?? "")
    .split(":")
    .map((folder) => join(folder, "xdg-open"))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
  if (program === undefined) return;
  const child = spawn(program, [url], { detached: true, stdio: "ignore" });
  child.on("error", () => {});
  child.unref();
}
