import type { Socket } from "node:net";
import { targetOfAddress } from "../../mesh/tunnel-address.ts";
import type { Counters } from "../counters.ts";
import { isAlert, reasonOfFailure, TunnelFailure } from "../failure.ts";
import { reset, splice } from "../splice.ts";
import type { Dialer } from "./dial.ts";
import type { ReadTarget } from "./target.ts";

/** Seconds of silence after which the kernel asks whether the app is still there. */
export const KEEPALIVE = 60_000;

export interface OutboundOptions {
  readTarget: ReadTarget;
  dialer: Dialer;
  counters: Counters;
  /** Called for each failure: one line, rate-limited by the receiver. */
  log(text: string): void;
}

/**
 * Carries one accepted connection of an app to the target that its local address names. The app's connect() has succeeded
 * already, so every failure is a reset for it. Owns the socket.
 */
export async function carryOutbound(socket: Socket, options: OutboundOptions): Promise<void> {
  const { counters, dialer, log } = options;
  const number = targetOfAddress(socket.localAddress);
  const target = number === undefined ? undefined : options.readTarget(number);
  socket.on("error", () => {});
  if (!target) {
    counters.failed("outbound", "unknown-target");
    log(`outbound: ${socket.localAddress ?? "a closed connection"} names no target`);
    reset(socket);
    return;
  }
  const { service, peer } = target;
  const abort = new AbortController();
  const gone = () => abort.abort();
  socket.once("close", gone);
  socket.setKeepAlive(true, KEEPALIVE);
  counters.begin("outbound");
  try {
    const source = { address: socket.remoteAddress ?? "0.0.0.0", port: socket.remotePort ?? 0 };
    const { stream, identity } = await dialer.dial(target, source, abort.signal);
    socket.off("close", gone);
    counters.opened("outbound", identity);
    if ("setKeepAlive" in stream && typeof stream.setKeepAlive === "function")
      stream.setKeepAlive(true, KEEPALIVE);
    splice(socket, stream, ({ forth, back, error, failed }) => {
      counters.closed("outbound", forth, back);
      if (failed !== "second" || back > 0) return;
      const reason = isAlert(error) ? "refused-by-peer" : reasonOfFailure(error);
      counters.failed("outbound", reason, service);
      log(`outbound: ${service} at ${peer.address}:${peer.port}: ${reason}: ${error?.message}`);
    });
  } catch (error) {
    socket.off("close", gone);
    counters.abandoned("outbound");
    const reason = reasonOfFailure(error);
    if (!abort.signal.aborted) {
      counters.failed("outbound", reason, service);
      const text = error instanceof TunnelFailure ? error.message : String(error);
      log(`outbound: ${service} at ${peer.address}:${peer.port}: ${reason}: ${text}`);
    }
    reset(socket);
  }
}
