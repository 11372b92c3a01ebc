import { TunnelFailure } from "../failure.ts";
import type { Http2Connection } from "../http2/connection.ts";
import { ERROR } from "../http2/frames.ts";
import type { Headers } from "../http2/hpack.ts";
import type { ConnectStream } from "../http2/stream.ts";
import { timeLimit } from "../time-limit.ts";

/**
 * Sends a CONNECT at once, and resolves with its stream when the peer has answered with 2xx. Rejects with TunnelFailure,
 * StreamReset, or the error of the connection; the stream is reset then. `patience` in milliseconds.
 */
export async function requestConnect(
  connection: Http2Connection,
  headers: Headers,
  patience: number,
  signal: AbortSignal,
): Promise<ConnectStream> {
  const stream = connection.connect(headers);
  stream.on("error", () => {});
  try {
    requireSuccess(await answerOf(stream, patience, signal));
  } catch (error) {
    stream.reset(ERROR.cancel);
    throw error;
  }
  return stream;
}

function requireSuccess(headers: Headers): void {
  const status = headers.find(([name]) => name === ":status")?.[1] ?? "";
  if (/^2\d\d$/.test(status)) return;
  const reason =
    status === "401" || status === "403"
      ? "denied-by-peer"
      : /^5\d\d$/.test(status)
        ? "peer-unavailable"
        : "bad-response";
  throw new TunnelFailure(reason, `the peer answers CONNECT with ${status || "no status"}`);
}

function answerOf(stream: ConnectStream, patience: number, signal: AbortSignal): Promise<Headers> {
  return new Promise((resolve, reject) => {
    const finish = () => {
      noLimit();
      signal.removeEventListener("abort", aborted);
    };
    const fail = (failure: Error) => {
      finish();
      reject(failure);
    };
    const aborted = () => fail(new TunnelFailure("reset", "the app has gone"));
    const noLimit = timeLimit(patience, () =>
      fail(new TunnelFailure("handshake-timeout", "the peer does not answer CONNECT")),
    );
    signal.addEventListener("abort", aborted);
    stream.response.then((headers) => {
      finish();
      resolve(headers);
    }, fail);
    if (signal.aborted) aborted();
  });
}
