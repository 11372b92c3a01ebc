import { request } from "node:http";
import { codeOf } from "../errors/reason.ts";

/** The agent answered with an HTTP error. */
export class AdminError extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.name = "AdminError";
    this.status = status;
  }
}

/**
 * Sends a GET to the agent's unix socket and resolves with the parsed JSON. `path` starts with a slash; `timeout` is
 * in milliseconds. Resolves with undefined when no agent listens: there is no socket, its agent is dead, or the agent
 * dies while it answers and no successor listens. Rejects with AdminError for an HTTP error, and with an Error when
 * there is no answer in time.
 */
export async function askAgent(socket: string, path: string, timeout = 10_000): Promise<unknown> {
  const answer = await ask(socket, path, timeout);
  if (answer !== LOST) return answer;
  // A successor may listen now.
  const second = await ask(socket, path, timeout);
  return second === LOST ? undefined : second;
}

/** A connection for each request: one that is kept open leads to the agent of before while that one ends. */
const CLOSE = { connection: "close" } as const;

/** The agent ended during the answer. */
const LOST = Symbol("lost");

function ask(socket: string, path: string, timeout: number): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const call = request({ socketPath: socket, path, timeout, agent: false, headers: CLOSE }, (response) => {
      const parts: Buffer[] = [];
      response.on("data", (part: Buffer) => parts.push(part));
      response.on("error", (error) => fail(error));
      response.on("aborted", () => resolve(LOST));
      response.on("end", () => {
        if (!response.complete) {
          resolve(LOST);
          return;
        }
        try {
          const body: unknown = JSON.parse(Buffer.concat(parts).toString("utf8"));
          if (response.statusCode === 200) resolve(body);
          else reject(new AdminError(response.statusCode ?? 0, errorOf(body)));
        } catch (error) {
          reject(error);
        }
      });
    });
    const fail = (error: Error) => {
      if (isAbsence(error)) resolve(undefined);
      else if (isLoss(error)) resolve(LOST);
      else reject(error);
    };
    call.on("timeout", () => call.destroy(new Error(`the agent did not answer within ${timeout / 1000} s`)));
    call.on("error", fail);
    call.end();
  });
}

/**
 * POSTs `body` to the agent and calls `line` with each line of the answer as it arrives. Resolves with false when no
 * agent listens, with true at the end of the answer. Rejects with AdminError for an HTTP error, and with an Error
 * when the agent sends nothing for `silence` milliseconds.
 */
export function orderAgent(
  socket: string,
  path: string,
  body: unknown,
  line: (value: unknown) => void,
  silence: number,
): Promise<boolean> {
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const text = JSON.stringify(body);
  const headers = {
    ...CLOSE,
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
  };
  let timer: ReturnType<typeof setTimeout> | undefined;
  const call = request({ socketPath: socket, path, method: "POST", agent: false, headers }, (response) => {
    const failed = response.statusCode !== 200;
    let rest = "";
    response.setEncoding("utf8");
    response.on("data", (part: string) => {
      heard();
      rest += part;
      if (failed) return;
      const lines = rest.split("\n");
      rest = lines.pop() ?? "";
      try {
        for (const each of lines) line(JSON.parse(each));
      } catch (error) {
        reject(error);
      }
    });
    response.on("error", reject);
    response.on("end", () => {
      if (failed) reject(new AdminError(response.statusCode ?? 0, errorIn(rest)));
      else resolve(true);
    });
  });
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      reject(new Error(`the agent said nothing for ${silence / 1000} s`));
      call.destroy();
    }, silence);
  };
  call.on("error", (error) => (isAbsence(error) ? resolve(false) : reject(error)));
  heard();
  call.end(text);
  return promise.finally(() => clearTimeout(timer));
}

/** Whether the error means that no agent listens: no socket, or a dead agent's. */
function isAbsence(error: Error): boolean {
  return ["ENOENT", "ECONNREFUSED", "FailedToOpenSocket", "ConnectionRefused"].includes(
    String(codeOf(error)),
  );
}

/** Whether the error of a POST means that the agent ended while it answered. */
export function isLoss(error: unknown): boolean {
  return ["ECONNRESET", "ECONNABORTED", "EPIPE", "ConnectionClosed", "ERR_STREAM_PREMATURE_CLOSE"].includes(
    String(codeOf(error)),
  );
}

function errorIn(text: string): string {
  try {
    return errorOf(JSON.parse(text));
  } catch {
    return "the agent refused";
  }
}

function errorOf(body: unknown): string {
  if (typeof body === "object" && body !== null && "error" in body) return String(body.error);
  return "the agent refused";
}
