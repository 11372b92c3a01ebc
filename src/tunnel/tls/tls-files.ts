import { statSync } from "node:fs";
import { createSecureContext, type SecureContext } from "node:tls";
import { readRegularFile } from "../../files/read-file.ts";
import type { Transport } from "../../mesh/transport.ts";
import { TunnelFailure } from "../failure.ts";

type Tls = Extract<Transport, { kind: "tls" }>;

/** At most so many contexts are kept. */
const KEPT = 1_000;

/** Contexts for the files that DestinationRules name. A file that has changed is read again. */
export class TlsFiles {
  readonly #kept = new Map<string, { stamp: string; context: SecureContext }>();

  /** Throws TunnelFailure `bad-file`, which names the file but none of its content. */
  context({ roots, certificate, key }: Tls): SecureContext {
    const files = [roots, certificate, key].filter((path) => path !== "" && path !== "system");
    const name = JSON.stringify([roots, certificate, key]);
    const stamp = files.map(stampOf).join(" ");
    const found = this.#kept.get(name);
    if (found?.stamp === stamp) return found.context;
    const context = create(roots, certificate, key);
    if (this.#kept.size >= KEPT) this.#kept.clear();
    this.#kept.set(name, { stamp, context });
    return context;
  }
}

function create(roots: string, certificate: string, key: string): SecureContext {
  const text = (path: string) => {
    try {
      return readRegularFile(path).toString("latin1");
    } catch {
      throw new TunnelFailure("bad-file", `${path} can't be read`);
    }
  };
  const files = {
    ...(roots !== "" && roots !== "system" && { ca: text(roots) }),
    ...(certificate !== "" && { cert: text(certificate), key: text(key) }),
  };
  try {
    return createSecureContext({ ...files, minVersion: "TLSv1.2", maxVersion: "TLSv1.3" });
  } catch {
    throw new TunnelFailure(
      "bad-file",
      `${[roots, certificate, key].filter(Boolean).join(", ")}: no usable PEM files`,
    );
  }
}

function stampOf(path: string): string {
  const { ino, mtimeMs, size } = statSync(path, { throwIfNoEntry: false }) ?? {};
  return `${ino} ${mtimeMs} ${size}`;
}
