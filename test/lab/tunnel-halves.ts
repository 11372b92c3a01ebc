/** For tests: the two halves of a tunnel in this process, with certificates of one mesh and of a foreign one. */
import { createServer, type Socket } from "node:net";
import type { Transport } from "../../src/mesh/transport.ts";
import { addressOfTarget } from "../../src/mesh/tunnel-address.ts";
import { Counters, type Way, type WayCounters } from "../../src/tunnel/counters.ts";
import { Budget } from "../../src/tunnel/http2/budget.ts";
import type { Admission } from "../../src/tunnel/inbound/admission.ts";
import { InboundTunnel } from "../../src/tunnel/inbound/inbound.ts";
import { Dialer } from "../../src/tunnel/outbound/dial.ts";
import { carryOutbound } from "../../src/tunnel/outbound/outbound.ts";
import type { Endpoints, TunnelTarget } from "../../src/tunnel/outbound/target.ts";
import { MeshCredentials } from "../../src/tunnel/tls/mesh-credentials.ts";
import { dialTcp, listening, outcome, TestMesh } from "./mesh-member.ts";
import { eventually } from "./process.ts";

/** Milliseconds for a handshake and for a connect; for the first bytes of an inbound connection. */
const PATIENCE = 3_000;
const SNIFF_PATIENCE = 200;

export class TunnelHalves {
  readonly mesh = new TestMesh();
  readonly foreign = new TestMesh();
  readonly targets = new Map<number, TunnelTarget>();
  counters = new Counters();
  budget = new Budget(1 << 26);
  /** What was logged. */
  lines: string[] = [];
  readonly #ends: (() => void)[] = [];

  /** Fresh counters; call before each test. */
  begin(): void {
    this.targets.clear();
    this.counters = new Counters();
    this.budget = new Budget(1 << 26);
    this.lines = [];
  }

  /** Calls what `defer` got; call after each test. */
  end(): void {
    for (const end of this.#ends.splice(0).reverse()) end();
  }

  /** Waits until so many failures are counted; gives them by reason. */
  async failures(way: Way, count: number): Promise<WayCounters["failures"]> {
    return eventually(`${count} failures`, () => {
      const { failures } = this.counters.rows.ways[way];
      return Object.values(failures).reduce((sum, each) => sum + each, 0) >= count && failures;
    });
  }

  /** Waits until all connections have ended. */
  async idle(way: Way): Promise<void> {
    await eventually("all connections have ended", () => {
      const { open, pending } = this.counters.rows.ways[way];
      return open + pending === 0;
    });
  }

  close(): void {
    this.mesh.close();
    this.foreign.close();
  }

  defer(end: () => void): void {
    this.#ends.push(end);
  }

  credentials(account: string, store = this.mesh.store(account)): MeshCredentials {
    const credentials = new MeshCredentials(store);
    this.defer(() => credentials.close());
    return credentials;
  }

  dialer(credentials: MeshCredentials, more: { idleFor?: number; handshake?: () => void } = {}): Dialer {
    const { budget } = this;
    const dialer = new Dialer({
      credentials,
      budget,
      baggage: "service.name=test",
      patience: PATIENCE,
      warn: (text) => this.lines.push(text),
      ...more,
    });
    this.defer(() => dialer.drain());
    return dialer;
  }

  /** A server that gets each socket paused; those that are left are destroyed at the end. Gives its port. */
  async listen(serve: (socket: Socket) => void, host = "127.0.0.1"): Promise<number> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (socket) => {
      this.defer(() => socket.destroy());
      serve(socket);
    });
    this.defer(() => server.close());
    return listening(server, host);
  }

  /** An app that answers `app got TEXT` at the end of what it got. Gives its port, which all addresses have. */
  app(): Promise<number> {
    return this.listen((socket) => {
      let text = "";
      socket.on("error", () => {});
      socket.on("data", (chunk) => {
        text += chunk;
        if (text.startsWith("\x16")) socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
      });
      socket.on("end", () => socket.end(`app got ${text}`));
      socket.resume();
    }, "0.0.0.0");
  }

  /** The outbound half. Gives the port at which apps enter; see `targets`. */
  outbound(dialer: Dialer, endpoints?: Endpoints): Promise<number> {
    return this.listen((socket) => {
      void carryOutbound(socket, {
        readTarget: (number) => this.targets.get(number),
        ...(endpoints && { endpoints }),
        dialer,
        counters: this.counters,
        log: (text) => this.lines.push(text),
      });
    }, "0.0.0.0");
  }

  inbound(credentials: MeshCredentials, admission: Admission, mostConnects?: number): InboundTunnel {
    return new InboundTunnel({
      ...(mostConnects !== undefined && { mostConnects }),
      credentials,
      admission,
      counters: this.counters,
      budget: this.budget,
      log: (text) => this.lines.push(text),
      patience: PATIENCE,
      sniffPatience: SNIFF_PATIENCE,
    });
  }

  /** Makes a target of a peer on loopback; gives the address at which apps reach it. */
  target(number: number, port: number, transport: Transport): string {
    this.targets.set(number, {
      number,
      peer: { address: "127.0.0.1", port },
      transport,
      service: "web",
      cluster: "c",
    });
    return addressOfTarget(number);
  }

  /** What an app gets that connects to `address`, sends `text` and half-closes. */
  async ask(entrance: number, address: string, text = "hello"): Promise<string> {
    const socket = await dialTcp(entrance, address);
    const answer = outcome(socket);
    socket.end(text);
    return answer;
  }
}
