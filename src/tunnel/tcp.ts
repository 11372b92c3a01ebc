import { connect, type Socket } from "node:net";
import { TunnelFailure } from "./failure.ts";
import { ignoreError } from "./splice.ts";
import { timeLimit } from "./time-limit.ts";

/** Milliseconds for a TCP connection, with its TLS handshake where it has one. */
export const CONNECT_PATIENCE = 10_000;
/** Milliseconds of silence after which the kernel asks whether the other side is still there. */
export const KEEPALIVE = 60_000;

/** Opens TCP. Rejects with the system's error, or TunnelFailure. */
export function openTcp(
  to: { host: string; port: number; localAddress?: string; localPort?: number },
  patience: number,
  signal: AbortSignal,
): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ ...to, allowHalfOpen: true, noDelay: true });
    socket.on("error", ignoreError);
    const finish = () => {
      noLimit();
      signal.removeEventListener("abort", aborted);
      socket.off("error", fail);
    };
    const fail = (error: Error) => {
      finish();
      socket.destroy();
      reject(error);
    };
    const aborted = () => fail(new TunnelFailure("reset", "the other side has gone"));
    const noLimit = timeLimit(patience, () =>
      fail(new TunnelFailure("connect-timeout", `no connection within ${patience} ms`)),
    );
    socket.once("connect", () => {
      finish();
      socket.pause();
      resolve(socket);
    });
    socket.on("error", fail);
    signal.addEventListener("abort", aborted);
    if (signal.aborted) aborted();
  });
}
