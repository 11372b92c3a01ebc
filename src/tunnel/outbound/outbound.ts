import type { Socket } from "node:net";
import { targetOfAddress } from "../../mesh/tunnel-address.ts";
import type { Counters } from "../counters.ts";
import { type FailureReason, isAlert, isEndpointsFault, reasonOfFailure } from "../failure.ts";
import { ignoreError, reset, splice } from "../splice.ts";
import { KEEPALIVE } from "../tcp.ts";
import type { Dialer, Dialled } from "./dial.ts";
import type { AddressAndPort } from "./proxy-protocol.ts";
import type { Endpoints, ReadTarget, TunnelTarget } from "./target.ts";

export interface OutboundOptions {
  readTarget: ReadTarget;
  /** Absent: nothing is tried on another endpoint, and no outcome is recorded. */
  endpoints?: Endpoints;
  dialer: Dialer;
  counters: Counters;
  /** Called for each failure: one line, rate-limited by the receiver. */
  log(text: string): void;
}

/**
 * Carries one accepted connection of an app to the target that its local address names, or to another endpoint of the same
 * cluster when that one fails before its first byte. The app's connect() has succeeded already, so a failure is a reset for
 * it. Owns the socket.
 */
export async function carryOutbound(socket: Socket, options: OutboundOptions): Promise<void> {
  const { counters, log } = options;
  const number = targetOfAddress(socket.localAddress);
  const target = number === undefined ? undefined : options.readTarget(number);
  socket.on("error", ignoreError);
  if (!target) {
    counters.failed("outbound", "unknown-target");
    log(`outbound: ${socket.localAddress ?? "a closed connection"} names no target`);
    reset(socket);
    return;
  }
  const abort = new AbortController();
  const gone = () => abort.abort();
  socket.once("close", gone);
  socket.setKeepAlive(true, KEEPALIVE);
  counters.begin("outbound");
  try {
    const source = { address: socket.remoteAddress ?? "0.0.0.0", port: socket.remotePort ?? 0 };
    const dialled = await dial(target, source, abort.signal, options);
    counters.opened("outbound", dialled.identity);
    join(socket, dialled, options);
  } catch {
    counters.abandoned("outbound");
    reset(socket);
  } finally {
    socket.off("close", gone);
  }
}

/** Carries a connection to its end. By itself, so that what is kept meanwhile is not all that the connect needed. */
function join(
  socket: Socket,
  { stream, to, since }: Awaited<ReturnType<typeof dial>>,
  options: OutboundOptions,
): void {
  const { counters, endpoints } = options;
  if ("setKeepAlive" in stream && typeof stream.setKeepAlive === "function")
    stream.setKeepAlive(true, KEEPALIVE);
  // In TLS 1.3 the peer judges our certificate after our side of the handshake. With its first byte it has accepted it.
  stream.once("data", () => endpoints?.record(to, "well", since));
  splice(socket, stream, ({ forth, back, error, failed }) => {
    counters.closed("outbound", forth, back);
    if (back > 0) return;
    const refused = failed === "second" && isAlert(error);
    endpoints?.record(to, refused ? "wrong" : "well", since);
    if (failed === "second") note(options, to, refused ? "refused-by-peer" : reasonOfFailure(error), error);
  });
}

/** Tries the target, then another endpoint of its cluster. Rejects with the last failure, which is counted and logged. */
async function dial(
  target: TunnelTarget,
  source: AddressAndPort,
  signal: AbortSignal,
  options: OutboundOptions,
): Promise<Dialled & { to: TunnelTarget; since: bigint }> {
  const { dialer, endpoints, counters } = options;
  for (let to = target; ; ) {
    const since = endpoints?.now() ?? 0n;
    try {
      const dialled = await dialer.dial(to, source, signal);
      if (to !== target) counters.rows.retried++;
      return { ...dialled, to, since };
    } catch (error) {
      if (signal.aborted) throw error;
      const reason = reasonOfFailure(error);
      note(options, to, reason, error);
      if (!isEndpointsFault(reason)) throw error;
      endpoints?.record(to, "wrong", since);
      const another = to === target ? endpoints?.another(target) : undefined;
      if (!another) throw error;
      to = another;
    }
  }
}

function note(
  { counters, log }: OutboundOptions,
  { service, peer }: TunnelTarget,
  reason: FailureReason,
  error: unknown,
): void {
  counters.failed("outbound", reason, service);
  const text = error instanceof Error ? error.message : String(error);
  log(`outbound: ${service} at ${peer.address}:${peer.port}: ${reason}: ${text}`);
}
