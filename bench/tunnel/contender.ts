/** What bench/tunnel.ts and its contenders share. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer, type Server } from "node:net";
import { createServer as createTlsServer } from "node:tls";
import { listening, TestMesh } from "../../test/lab/mesh-member.ts";
import { type Connect, serve } from "./load.ts";

export const WAYS = ["sidecar mTLS", "HBONE"] as const;
export type Way = (typeof WAYS)[number];

/** The SNI of the peer of sidecar mTLS. */
export const SNI = "outbound_.80_._.web.shop.svc.cluster.local";

export interface Contender {
  name: string;
  /** Its processes. */
  pids(): number[];
  /** Without a way that it does not speak. */
  connect: Partial<Record<Way, Connect>>;
}

/** The mesh and the peers of a run, and the processes that `begin` started. */
export class Bench {
  readonly mesh = new TestMesh();
  /** Ports: the peer of sidecar mTLS, the app behind that of HBONE, and that of HBONE, which is another Envoy. */
  web = 0;
  app = 0;
  hboneWeb = 0;
  readonly #children: ChildProcess[] = [];
  readonly #servers: Server[] = [];

  /** Starts the peers but for that of HBONE. */
  async open(): Promise<void> {
    const web = createTlsServer({ ...this.mesh.issue("web"), requestCert: true }, serve);
    const app = createServer(serve);
    this.#servers.push(web, app);
    this.web = await listening(web);
    this.app = await listening(app);
    [this.hboneWeb = 0] = await freePorts(1);
  }

  /** Starts a process that ends with the bench, and gives its pid. Errors that it prints are shown unless it is `quiet`. */
  begin(
    [file = "", ...args]: readonly string[],
    { env = process.env, quiet = false }: { env?: NodeJS.ProcessEnv; quiet?: boolean } = {},
  ): number {
    const child = spawn(file, args, { env, stdio: ["ignore", "ignore", quiet ? "ignore" : "inherit"] });
    this.#children.push(child);
    return child.pid ?? 0;
  }

  close(): void {
    for (const child of this.#children) child.kill("SIGKILL");
    for (const server of this.#servers) server.close();
    this.mesh.close();
  }
}

export async function freePorts(count: number): Promise<number[]> {
  const probes = Array.from({ length: count }, () => createServer());
  const ports = await Promise.all(probes.map((probe) => listening(probe)));
  for (const probe of probes) {
    probe.close();
    await once(probe, "close");
  }
  return ports;
}

/** Waits until a proxy has come up: for what `look` gives. */
export async function eventually<T>(look: () => T | undefined | Promise<T | undefined>): Promise<T> {
  for (let i = 0; i < 200; i++) {
    const found = await Promise.resolve(look()).catch(() => undefined);
    if (found !== undefined) return found;
    await new Promise((later) => setTimeout(later, 50));
  }
  throw new Error("a proxy did not come up");
}
