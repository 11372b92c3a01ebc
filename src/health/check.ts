/** Runs one health check of the application. */
import { spawn } from "node:child_process";
import http from "node:http";
import https from "node:https";
import { connect } from "node:net";
import type { Probe, Question } from "./probe.ts";

/** The result of a check. `reason` is one line, for people and for istiod. */
export type Answer = { healthy: true } | { healthy: false; reason: string };

const WELL: Answer = { healthy: true };
/** Longest reason, characters. */
const LONGEST_REASON = 300;
/**
 * How much of a command's output is kept, characters, and how long to wait for it after the command has ended,
 * milliseconds.
 */
const LAST_WORDS = { length: 2_000, wait: 100 };

/**
 * Runs the check of `probe`, at `address` when the probe names no host. Resolves within the probe's timeout; never
 * rejects. Everything that it started has ended by then. `signal` aborts it.
 */
export async function check(
  probe: Pick<Probe, "question" | "timeout">,
  address: string,
  signal: AbortSignal = new AbortController().signal,
): Promise<Answer> {
  const { question, timeout } = probe;
  const late = `no answer within ${timeout / 1000} s`;
  const ending = new AbortController();
  const end = () => ending.abort();
  signal.addEventListener("abort", end);
  const timer = setTimeout(end, timeout);
  try {
    if (signal.aborted) end();
    const answer = await ask(question, address, ending.signal);
    return ending.signal.aborted && !answer.healthy ? unhealthy(late) : answer;
  } catch (error) {
    return unhealthy(ending.signal.aborted ? late : reasonOf(error));
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
  }
}

function ask(question: Question, address: string, signal: AbortSignal): Promise<Answer> {
  switch (question.kind) {
    case "http":
      return askHttp(question, question.host ?? address, signal);
    case "tcp":
      return askTcp(question.host ?? address, question.port, signal);
    case "grpc":
      return askGrpc(question, address, signal);
    case "exec":
      return askCommand(question.command, signal);
  }
}

/**
 * Status 200 to 399 is healthy. Like kubelet, it does not verify the server's certificate and does not follow
 * redirects.
 */
function askHttp(
  question: Extract<Question, { kind: "http" }>,
  host: string,
  signal: AbortSignal,
): Promise<Answer> {
  const { scheme, port, path } = question;
  const headers: Record<string, string | string[]> = { "User-Agent": "kmesh-probe", Connection: "close" };
  for (const { name, value } of question.headers) {
    const known = Object.keys(headers).find((each) => each.toLowerCase() === name.toLowerCase());
    const given = question.headers.filter((each) => each.name.toLowerCase() === name.toLowerCase());
    if (known !== undefined) delete headers[known];
    headers[name] = given.length === 1 ? value : given.map((each) => each.value);
  }
  return new Promise((resolve, reject) => {
    const options = { host, port, path, headers, signal, agent: false };
    const answered = (response: http.IncomingMessage) => {
      const { statusCode = 0 } = response;
      response.on("error", () => {});
      response.destroy();
      resolve(statusCode >= 200 && statusCode < 400 ? WELL : unhealthy(`HTTP status ${statusCode}`));
    };
    const request =
      scheme === "https"
        ? https.get({ ...options, rejectUnauthorized: false }, answered)
        : http.get(options, answered);
    request.on("error", reject);
  });
}

/** An established connection is healthy; it is closed at once. */
function askTcp(host: string, port: number, signal: AbortSignal): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port });
    const give = () => socket.destroy(new Error("given up"));
    signal.addEventListener("abort", give);
    socket.once("connect", () => resolve(WELL));
    socket.once("error", reject);
    socket.once("close", () => signal.removeEventListener("abort", give));
    socket.once("connect", () => socket.destroy());
    if (signal.aborted) give();
  });
}

/** grpc.health.v1.Health/Check: SERVING is healthy. */
async function askGrpc(
  { port, service }: Extract<Question, { kind: "grpc" }>,
  host: string,
  signal: AbortSignal,
): Promise<Answer> {
  // Loaded on demand: few probes need gRPC.
  const { Client, credentials } = await import("@grpc/grpc-js");
  const at = host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
  const client = new Client(`dns:${at}`, credentials.createInsecure(), {
    "grpc.primary_user_agent": "kmesh-probe",
    "grpc.enable_http_proxy": 0,
    "grpc.enable_retries": 0,
    "grpc.service_config_disable_resolution": 1,
    "grpc.use_local_subchannel_pool": 1,
  });
  try {
    return await new Promise((resolve, reject) => {
      const call = client.makeUnaryRequest(
        "/grpc.health.v1.Health/Check",
        // HealthCheckRequest{service 1}
        (name: string) => (name === "" ? Buffer.alloc(0) : lengthDelimited(name)),
        (response: Buffer) => response,
        service,
        (error, response) => {
          if (error) reject(new Error(withoutWrapping(error.details || error.message)));
          // HealthCheckResponse{status 1}, SERVING 1
          else resolve(response?.[0] === 0x08 && response[1] === 1 ? WELL : unhealthy("it is not SERVING"));
        },
      );
      signal.addEventListener("abort", () => call.cancel());
      if (signal.aborted) call.cancel();
    });
  } finally {
    client.close();
  }
}

/** The reason inside gRPC's error text. */
function withoutWrapping(details: string): string {
  return /Last error: (?:Error: )?(.*?)(?: \([^()]*Z\))?\. Resolution note:/.exec(details)?.[1] ?? details;
}

function lengthDelimited(text: string): Buffer {
  const bytes = Buffer.from(text);
  const length = bytes.length < 128 ? [bytes.length] : [(bytes.length & 127) | 128, bytes.length >> 7];
  return Buffer.concat([Buffer.from([0x0a, ...length]), bytes]);
}

/**
 * Exit code 0 is healthy. The command runs as root like the agent, in its own process group, which is killed at the
 * end.
 */
function askCommand(command: readonly string[], signal: AbortSignal): Promise<Answer> {
  const [file = "", ...args] = command;
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, { stdio: ["ignore", "ignore", "pipe"], detached: true });
    let words = "";
    const kill = () => {
      if (child.pid === undefined) return;
      try {
        process.kill(-child.pid, "SIGKILL");
      } catch {
        // The process group has ended already.
      }
    };
    signal.addEventListener("abort", kill);
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      words = (words + text).slice(-LAST_WORDS.length);
    });
    child.once("error", reject);
    child.once("exit", (code, by) => {
      signal.removeEventListener("abort", kill);
      // Kills its background processes, too.
      kill();
      const tell = () => {
        clearTimeout(timer);
        const last = words.trim().split("\n").at(-1) ?? "";
        const said = last === "" ? "" : `: ${last}`;
        resolve(code === 0 ? WELL : unhealthy(`${file} ended with ${by ?? `exit code ${code}`}${said}`));
      };
      const timer = setTimeout(tell, LAST_WORDS.wait);
      child.once("close", tell);
    });
    if (signal.aborted) kill();
  });
}

function unhealthy(reason: string): Answer {
  const line = reason.replace(/\s+/g, " ").trim();
  return {
    healthy: false,
    reason: line.length <= LONGEST_REASON ? line : `${line.slice(0, LONGEST_REASON - 3)}...`,
  };
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const code = "code" in error ? String(error.code) : "";
  // An AggregateError (one attempt per address) has no text of its own.
  return error.message || code || error.name;
}
