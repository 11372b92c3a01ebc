import { request } from "node:http";

/** The agent answered, and the answer is an error. */
export class AdminError extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.name = "AdminError";
    this.status = status;
  }
}

/**
 * Asks the agent behind the unix socket. `path` starts with a slash; `timeout` is in milliseconds. Gives undefined
 * when nobody listens (no socket, or a dead agent's); rejects with AdminError when the agent says no, with an
 * Error when it does not answer in time.
 */
export function askAgent(socket: string, path: string, timeout = 10_000): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const call = request({ socketPath: socket, path, timeout }, (response) => {
      const parts: Buffer[] = [];
      response.on("data", (part: Buffer) => parts.push(part));
      response.on("error", reject);
      response.on("end", () => {
        try {
          const body: unknown = JSON.parse(Buffer.concat(parts).toString("utf8"));
          if (response.statusCode === 200) resolve(body);
          else reject(new AdminError(response.statusCode ?? 0, errorOf(body)));
        } catch (error) {
          reject(error);
        }
      });
    });
    call.on("timeout", () => call.destroy(new Error(`the agent did not answer within ${timeout / 1000} s`)));
    call.on("error", (error) => {
      const code = "code" in error ? error.code : undefined;
      if (["ENOENT", "ECONNREFUSED", "FailedToOpenSocket", "ConnectionRefused"].includes(String(code)))
        resolve(undefined);
      else reject(error);
    });
    call.end();
  });
}

function errorOf(body: unknown): string {
  if (typeof body === "object" && body !== null && "error" in body) return String(body.error);
  return "the agent refused";
}
