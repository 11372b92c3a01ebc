import { statSync } from "node:fs";
import { createSecureContext, type SecureContext } from "node:tls";
import { reasonOf } from "../../errors/reason.ts";
import { readRegularFile } from "../../files/read-file.ts";
import type { Transport } from "../../mesh/transport.ts";
import { TunnelFailure } from "../failure.ts";

type Tls = Extract<Transport, { kind: "tls" }>;

/** At most so many contexts are kept. */
const KEPT = 1_000;

/** Where distributions keep the machine's roots, as Go's crypto/x509 looks for them; the first that exists counts. */
const SYSTEM_ROOTS = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/pki/tls/cacert.pem",
  "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
  "/etc/ssl/cert.pem",
];

interface Files {
  roots: string;
  certificate: string;
  key: string;
}

/**
 * Contexts for the files that DestinationRules name. A file that has changed is read again; the last files that were right stay
 * in use while the new ones are missing or broken, as while they are being replaced.
 */
export class TlsFiles {
  readonly #kept = new Map<string, { stamp: string; context: SecureContext }>();
  readonly #warn: (text: string) => void;

  /** `warn` gets one line for each change that can't be used. */
  constructor(warn: (text: string) => void = () => {}) {
    this.#warn = warn;
  }

  /** Throws TunnelFailure `bad-file`, which names the file but none of its content. */
  context({ roots: named, certificate, key }: Tls): SecureContext {
    const roots = named === "system" ? systemRoots() : named;
    const files = { roots, certificate, key };
    const name = JSON.stringify(files);
    const stamp = [roots, certificate, key].map(stampOf).join(" ");
    const found = this.#kept.get(name);
    if (found?.stamp === stamp) return found.context;
    const context = this.#create(files, found?.context);
    if (!found && this.#kept.size >= KEPT) this.#kept.clear();
    this.#kept.set(name, { stamp, context });
    return context;
  }

  #create(files: Files, before: SecureContext | undefined): SecureContext {
    try {
      return create(files);
    } catch (error) {
      if (!before) throw error;
      this.#warn(`${reasonOf(error)}: those that were read before stay in use`);
      return before;
    }
  }
}

/** The file of the machine's roots; "" when it has none, and the runtime's own ones count. */
function systemRoots(): string {
  const named = process.env.SSL_CERT_FILE ?? "";
  if (named !== "") return named;
  return SYSTEM_ROOTS.find((path) => statSync(path, { throwIfNoEntry: false })?.isFile()) ?? "";
}

function create({ roots, certificate, key }: Files): SecureContext {
  const text = (path: string) => {
    try {
      return readRegularFile(path).toString("latin1");
    } catch (error) {
      throw new TunnelFailure("bad-file", `${path} can't be read: ${reasonOf(error)}`);
    }
  };
  const files = {
    ...(roots !== "" && { ca: text(roots) }),
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

/** Also chmod(2) and chown(2) change it. */
function stampOf(path: string): string {
  if (path === "") return "";
  try {
    const { ino, mtimeMs, ctimeMs, size } = statSync(path);
    return `${ino} ${mtimeMs} ${ctimeMs} ${size}`;
  } catch (error) {
    return reasonOf(error);
  }
}
