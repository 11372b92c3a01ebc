/**
 * A peer that connects by a sidecar's mutual TLS, again and again: `tunnel-peer.ts FILE ADDRESS PORT SECONDS`. FILE has
 * {key, cert, ca}. Prints a Tally as JSON at its end.
 */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import { connect as connectTls } from "node:tls";

export interface Tally {
  /** Connections that the app answered. */
  served: number;
  /** connect() failed, by errno's name. */
  failed: Record<string, number>;
  /** Connections that broke after connect(): the process that had accepted them was killed. */
  cut: number;
}

const [, , file = "", host = "", port = "", seconds = ""] = process.argv;
const { key, cert, ca } = JSON.parse(readFileSync(file, "utf8")) as Record<"key" | "cert" | "ca", string>;
const tally: Tally = { served: 0, failed: {}, cut: 0 };
const end = performance.now() + Number(seconds) * 1000;

async function ask(): Promise<void> {
  const socket = connect({ host, port: Number(port) });
  try {
    await once(socket, "connect");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    tally.failed[code] = (tally.failed[code] ?? 0) + 1;
    return;
  }
  try {
    const secure = connectTls({
      ...{ socket, key, cert, ca, ALPNProtocols: ["istio"] },
      checkServerIdentity: () => undefined,
    });
    const timer = setTimeout(() => socket.resetAndDestroy(), 10_000);
    secure.write("hello\n");
    const [answer] = await Promise.race([
      once(secure, "data"),
      once(socket, "close").then(() => {
        throw new Error("closed");
      }),
    ]);
    clearTimeout(timer);
    if (String(answer).startsWith("own ")) tally.served++;
    else tally.cut++;
    secure.destroy();
  } catch {
    tally.cut++;
  }
  socket.destroy();
}

async function loop(): Promise<void> {
  while (performance.now() < end) await ask();
}

console.log("ready");
await Promise.all([loop(), loop(), loop(), loop()]);
console.log(JSON.stringify(tally));
process.exit(0);
