/**
 * The admin API: HTTP on a unix socket that only root may open. Reads, never changes.
 *
 *     GET /status            what the agent knows, and what the kernel holds
 *     GET /dump/received     istiod's resources as the agent keeps them
 *     GET /dump/model        the mesh that they became
 *     GET /dump/tables       what the kernel holds
 *     GET /explain?target=   where a connection would go
 */

import { once } from "node:events";
import { mkdirSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { dirname } from "node:path";
import { jsonParts } from "./json.ts";

/** Gives what is sent as JSON. What it throws is sent as status 400 when it is a `BadRequest`, else as 500. */
export type Answer = (query: URLSearchParams) => unknown;

export class BadRequest extends Error {}

export class AdminServer {
  readonly #server: Server;
  readonly #path: string;

  private constructor(server: Server, path: string) {
    this.#server = server;
    this.#path = path;
  }

  /**
   * Listens on the unix socket `path`, mode 0700. A socket that lies there is taken for a dead agent's: only
   * call this while holding the lock. Rejects with what the file system says.
   */
  static async listen(path: string, answers: Record<string, Answer>): Promise<AdminServer> {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    rmSync(path, { force: true });
    const server = createServer(async (request, response) => {
      const url = new URL(request.url ?? "/", "http://kmesh");
      const answer = Object.hasOwn(answers, url.pathname) ? answers[url.pathname] : undefined;
      const [code, body] = await reply(request.method, url, answer);
      response.writeHead(code, { "content-type": "application/json" });
      for (const part of body) {
        if (!response.write(part)) await once(response, "drain").catch(() => {});
        if (response.destroyed) return;
      }
      response.end();
    });
    const before = process.umask(0o077);
    try {
      await new Promise<void>((resolve, reject) => {
        server.once("error", reject);
        server.listen(path, resolve);
      });
    } finally {
      process.umask(before);
    }
    return new AdminServer(server, path);
  }

  /** Stops listening and removes the socket. */
  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
    rmSync(this.#path, { force: true });
  }
}

async function reply(
  method: string | undefined,
  url: URL,
  answer: Answer | undefined,
): Promise<[number, Uint8Array[]]> {
  if (!answer) return [404, jsonParts({ error: `there is no ${url.pathname}` })];
  if (method !== "GET") return [405, jsonParts({ error: "only GET is answered" })];
  try {
    return [200, jsonParts(await answer(url.searchParams))];
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return [error instanceof BadRequest ? 400 : 500, jsonParts({ error: message })];
  }
}
