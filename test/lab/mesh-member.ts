/** For tests: members of a mesh with certificates of one CA, in folders that `close` removes. */
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { readCertificate } from "../../src/istiod/identity/certificate.ts";
import { CertificateStore } from "../../src/istiod/identity/certificate-store.ts";
import { Authority } from "./authority.ts";

export class TestMesh {
  readonly folder = mkdtempSync(join(tmpdir(), "kmesh-mesh-"));
  readonly authority = new Authority(this.folder);

  /** `spiffe://cluster.local/ns/NS/sa/ACCOUNT` */
  id(account: string, namespace = "shop"): string {
    return `spiffe://cluster.local/ns/${namespace}/sa/${account}`;
  }

  /** PEM key, chain and root of a workload; days of validity from now. */
  issue(account: string, days: { from?: number; to?: number } = {}) {
    const { key, chain } = this.authority.issue(`URI:${this.id(account)}`, days);
    return { key, cert: chain, ca: this.authority.root };
  }

  /** A store with a certificate of the account, as the agent writes it. */
  store(account: string, days: { from?: number; to?: number } = {}): CertificateStore {
    const store = new CertificateStore(mkdtempSync(join(this.folder, "store-")));
    this.renew(store, account, days);
    return store;
  }

  renew(store: CertificateStore, account: string, days: { from?: number; to?: number } = {}): void {
    const { key, cert, ca } = this.issue(account, days);
    store.save(readCertificate(key, cert, ca));
  }

  close(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Listens on a free port of `host`, and gives it. */
export async function listening(server: Server, host = "127.0.0.1"): Promise<number> {
  server.listen(0, host);
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

/** Connects, and gives the socket without waiting for more. Errors are kept for `outcome`. */
export async function dialTcp(port: number, host = "127.0.0.1", localAddress?: string): Promise<Socket> {
  const socket = connect({
    port,
    host,
    allowHalfOpen: true,
    ...(localAddress !== undefined && { localAddress }),
  });
  await once(socket, "connect");
  return socket;
}

/** All that a stream gives until its end; the code of its error when it ends with one. */
export async function outcome(stream: Duplex): Promise<string> {
  const parts: Buffer[] = [];
  return new Promise((resolve) => {
    stream.on("data", (chunk: Buffer) => parts.push(chunk));
    stream.on("end", () => resolve(Buffer.concat(parts).toString()));
    stream.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    stream.on("close", () => resolve("closed"));
  });
}
