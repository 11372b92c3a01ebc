import { readlinkSync } from "node:fs";
import { join } from "node:path";
import { createSecureContext, type SecureContext, type SecureVersion } from "node:tls";
import { isMissing, reasonOf } from "../../errors/reason.ts";
import { type Certificate, isValidAt } from "../../istiod/identity/certificate.ts";
import type { CertificateStore } from "../../istiod/identity/certificate-store.ts";
import { formatSpiffe } from "../../istiod/spiffe.ts";
import { TunnelFailure } from "../failure.ts";
import { Sessions } from "./sessions.ts";

/** Milliseconds between two looks at the folder's link: one readlink(2). */
const LOOK_EVERY = 1_000;

/** One certificate with its roots, ready for handshakes. Connections keep the one that they began with. */
export interface CredentialGeneration {
  /** `spiffe://...` of this machine. */
  id: string;
  trustDomain: string;
  serial: string;
  /** Milliseconds since the epoch. */
  notAfter: number;
  /** For handshakes of this version or later, TLS 1.3 at most. */
  context(from: "TLSv1.2" | "TLSv1.3"): SecureContext;
  /** With peers that were verified by this certificate's roots. */
  sessions: Sessions;
}

/** The certificate that new handshakes use, without the key. */
export interface CredentialStatus {
  /** `spiffe://...` of this machine; absent while no certificate was ever read, like the two below. */
  id?: string;
  serial?: string;
  /** Milliseconds since the epoch. */
  notAfter?: number;
  valid: boolean;
  /** How often it was replaced. */
  rotations: number;
  /** What is wrong with the files. */
  trouble?: string;
}

/**
 * The machine's certificate, key and roots from the identity's files, read again when the agent replaces them. The last
 * ones that were right stay in use while the files are missing or broken. Never logs a key.
 */
export class MeshCredentials {
  readonly #store: CertificateStore;
  readonly #log: (text: string) => void;
  readonly #timer: ReturnType<typeof setInterval>;
  #generation: (CredentialGeneration & { certificate: Certificate }) | undefined;
  #link: string | undefined;
  #rotations = 0;
  #trouble = "there is no certificate yet";

  /** Reads the files. `log` gets one line for each change. Call `close` at the end. */
  constructor(store: CertificateStore, log: (text: string) => void = () => {}) {
    this.#store = store;
    this.#log = log;
    this.refresh();
    this.#timer = setInterval(() => this.refresh(), LOOK_EVERY);
    this.#timer.unref();
  }

  /** The current certificate. Throws TunnelFailure: `no-certificate`, `own-certificate-expired`. */
  current(): CredentialGeneration {
    const generation = this.#generation;
    if (!generation)
      throw new TunnelFailure("no-certificate", `this machine has no certificate: ${this.#trouble}`);
    if (!isValidAt(generation.certificate, Date.now())) {
      const until = new Date(generation.notAfter).toISOString();
      throw new TunnelFailure(
        "own-certificate-expired",
        `this machine's certificate was valid until ${until}`,
      );
    }
    return generation;
  }

  status(): CredentialStatus {
    const generation = this.#generation;
    return {
      ...(generation && { id: generation.id, serial: generation.serial, notAfter: generation.notAfter }),
      valid: generation !== undefined && isValidAt(generation.certificate, Date.now()),
      rotations: this.#rotations,
      ...(this.#trouble !== "" && { trouble: this.#trouble }),
    };
  }

  /** Reads the files again if they were replaced since. */
  refresh(): void {
    try {
      const link = this.#readLink();
      if (link === this.#link) {
        if (link !== undefined) this.#trouble = "";
        return;
      }
      if (link === undefined) throw new Error("the files are gone");
      const certificate = this.#store.load();
      if (!certificate) return;
      this.#generation = { ...prepare(certificate), certificate };
      this.#rotations += this.#link === undefined ? 0 : 1;
      this.#link = link;
      this.#trouble = "";
      this.#log(`uses the certificate ${certificate.serial} of ${this.#generation.id}`);
    } catch (error) {
      const trouble = reasonOf(error);
      if (trouble !== this.#trouble)
        this.#log(`can't use the certificate in ${this.#store.folder}: ${trouble}`);
      this.#trouble = trouble;
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #readLink(): string | undefined {
    try {
      return readlinkSync(join(this.#store.folder, "current"));
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }
}

function prepare({ key, chain, roots, id, serial, notAfter }: Certificate): CredentialGeneration {
  const contexts = new Map<SecureVersion, SecureContext>();
  return {
    id: formatSpiffe(id),
    trustDomain: id.trustDomain,
    serial,
    notAfter,
    sessions: new Sessions(),
    context(from) {
      const found = contexts.get(from);
      if (found) return found;
      const made = createSecureContext({
        key,
        cert: chain,
        ca: roots,
        minVersion: from,
        maxVersion: "TLSv1.3",
      });
      contexts.set(from, made);
      return made;
    },
  };
}
