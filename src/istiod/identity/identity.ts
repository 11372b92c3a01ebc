import { statSync } from "node:fs";
import { reasonOf } from "../../errors/reason.ts";
import { Backoff, type BackoffLimits } from "../backoff.ts";
import { FileError } from "../file-error.ts";
import { formatSpiffe, type SpiffeId } from "../spiffe.ts";
import { type Hosts, parseTarget, type Target } from "../target.ts";
import { type Certificate, isValidAt, MalformedCertificate, readCertificate } from "./certificate.ts";
import { createCertificate, SigningRefused } from "./certificate-authority.ts";
import type { CertificateStore } from "./certificate-store.ts";
import {
  type CertificateSource,
  explainRefusal,
  isAway,
  isDistrusted,
  openCredentials,
  type Proof,
  type Security,
  UNAUTHENTICATED,
} from "./credentials.ts";
import { renewalOf, shortestPause, skewOf, span } from "./lifetime.ts";
import { newSigningRequest } from "./signing-request.ts";
import { faultOfToken, freshTokenCommand, isExposed, readToken, time } from "./token.ts";

/** The requested lifetime of a certificate, seconds. */
const VALIDITY = 24 * 3600;
const BACKOFF: BackoffLimits = { first: 1_000, longest: 60_000 };
/** Shortest time between two renewals that `doubt` causes, milliseconds. */
const DOUBT = 30_000;
/** The longest timer, milliseconds. A changed clock or a suspended machine is noticed within that time. */
const NAP = 30_000;
/** The longest timer while attempts fail, milliseconds. A rewritten token or root file is tried within that time. */
const RESTLESS_NAP = 1_000;

/** An event of the certificate, for the log. Times are milliseconds since the epoch. */
export type IdentityEvent =
  /** The certificate that an earlier process stored is used. */
  | { kind: "reused"; id: string; notAfter: number; renewal: number }
  | { kind: "obtained"; id: string; notAfter: number; renewal: number; proof: Proof }
  /**
   * The attempt failed. The old certificate, if there is one, is used until it expires. The next attempt follows
   * after `retry` milliseconds.
   */
  | { kind: "failed"; reason: string; expired: boolean; retry: number }
  /** Something that the operator should fix. The request itself succeeded. */
  | { kind: "remark"; reason: string };

/** The identity as `kmesh status` shows it. Times are milliseconds since the epoch. */
export interface IdentityStatus {
  /** The id in the certificate, or the configured one while there is no certificate. */
  id: string;
  /** Absent while there is no certificate; it may have expired. */
  certificate?: { serial: string; notBefore: number; notAfter: number; valid: boolean };
  /** When the next certificate is requested; 0 while attempts fail. */
  renewal: number;
  /** Certificates obtained by this process. */
  obtained: number;
  lastError?: { at: number; text: string };
}

export interface IdentityOptions {
  /** `HOST:PORT` of istiod's CA. */
  istiod: string;
  /** Addresses to use instead of a DNS lookup, by name. */
  hosts?: Hosts;
  id: SpiffeId;
  /** The file of the root certificates, and the file of the token. */
  ca: string;
  token: string;
  clusterId?: string;
  store: CertificateStore;
  /** Called for each event; must not throw. */
  on?(event: IdentityEvent): void;
  /** Called when there is a new certificate. */
  renewed?(): void;
  /** Seconds. */
  validity?: number;
  /** Milliseconds since the epoch. */
  clock?(): number;
  backoff?: BackoffLimits;
}

/**
 * This workload's certificate. It is read from the store, or obtained with the token. It is renewed at half of its
 * lifetime, authenticated by the certificate itself, or by the token when istiod does not accept the certificate. A
 * failed renewal keeps the certificate that is there.
 */
export class WorkloadIdentity implements CertificateSource {
  readonly #options: IdentityOptions;
  readonly #target: Target;
  readonly #security: Security;
  readonly #on: (event: IdentityEvent) => void;
  readonly #clock: () => number;
  readonly #backoff: Backoff;
  #certificate: Certificate | undefined;
  /** Why the stored certificate is not used. */
  #discarded: string | undefined;
  /** The next attempt is due at this wall-clock time, but not before the monotonic time below. */
  #due = 0;
  #earliest = 0;
  #doubtful = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #running = false;
  #busy = false;
  #failing = false;
  /** State of the token's and the roots' files at the last attempt. */
  #files = "";
  #obtained = 0;
  #lastError: { at: number; text: string } | undefined;

  /** Reads the store; uses neither network nor token. Throws an Error when `istiod` is no HOST:PORT. */
  constructor(options: IdentityOptions) {
    this.#options = options;
    this.#target = parseTarget(options.istiod, options.hosts);
    this.#security = { kind: "tls", ca: options.ca, token: options.token, identity: this };
    this.#on = options.on ?? (() => {});
    this.#clock = options.clock ?? Date.now;
    this.#backoff = new Backoff(options.backoff ?? BACKOFF);
    this.#restore();
  }

  /**
   * Uses the stored certificate when it is valid, else requests one. Resolves when there is a certificate, or after
   * the first failed attempt.
   */
  async begin(): Promise<void> {
    const { token, id } = this.#options;
    this.#running = true;
    if (isExposed(token)) {
      this.#on({
        kind: "remark",
        reason: `others can read the token in ${token}, and be ${formatSpiffe(id)} with it: chmod 0600 ${token}`,
      });
    }
    if (this.#discarded !== undefined) this.#on({ kind: "remark", reason: this.#discarded });
    const now = this.#clock();
    const found = this.#certificate;
    if (found && isValidAt(found, now)) {
      this.#due = renewalOf(found);
      const { id, notAfter } = found;
      this.#on({ kind: "reused", id: formatSpiffe(id), notAfter, renewal: this.#due });
      this.#sleep();
      return;
    }
    await this.#renew();
  }

  /**
   * Requests a certificate as a renewal does, and discards it. Resolves with how kmesh authenticated itself, the
   * trust domain, and how far our clock is ahead of istiod's in milliseconds (negative: behind). Rejects with an
   * Error of one line.
   */
  async tryOut(): Promise<{ proof: Proof; skew: number; trustDomain: string }> {
    const { certificate, proof } = await this.#obtain();
    const { trustDomain } = certificate.id;
    return { proof, skew: skewOf(certificate, this.#clock()), trustDomain };
  }

  /** Stops renewing. The current certificate stays available. */
  stop(): void {
    this.#running = false;
    clearTimeout(this.#timer);
  }

  current(): Certificate | undefined {
    const certificate = this.#certificate;
    return certificate && isValidAt(certificate, this.#clock()) ? certificate : undefined;
  }

  roots(): string {
    return this.#certificate?.roots ?? "";
  }

  /** Renews now, unless a renewal is running or failing, or `doubt` caused one within the last 30 s. */
  doubt(): void {
    const now = performance.now();
    if (!this.#running || this.#busy || this.#failing || now < this.#doubtful) return;
    this.#doubtful = now + DOUBT;
    this.#due = 0;
    this.#earliest = 0;
    this.#sleep();
  }

  /** The last error while there is no valid certificate. With a valid one, a failing stream has another cause. */
  trouble(): string | undefined {
    return this.current() ? undefined : this.#lastError?.text;
  }

  status(): IdentityStatus {
    const certificate = this.#certificate;
    const status: IdentityStatus = {
      id: formatSpiffe(certificate?.id ?? this.#options.id),
      renewal: this.#due,
      obtained: this.#obtained,
    };
    if (certificate) {
      const { serial, notBefore, notAfter } = certificate;
      status.certificate = { serial, notBefore, notAfter, valid: isValidAt(certificate, this.#clock()) };
    }
    if (this.#lastError) status.lastError = this.#lastError;
    return status;
  }

  /** Sleeps until the next attempt is due. Retries use the monotonic clock, since the wall clock may be wrong. */
  #sleep(): void {
    clearTimeout(this.#timer);
    if (!this.#running) return;
    const rest = Math.max(this.#due - this.#clock(), this.#earliest - performance.now());
    const nap = this.#failing ? RESTLESS_NAP : NAP;
    this.#timer = setTimeout(
      () => {
        if (rest <= nap || (this.#failing && this.#stamp() !== this.#files)) void this.#renew();
        else this.#sleep();
      },
      Math.min(Math.max(rest, 0), nap),
    );
  }

  /** A text that changes when one of the two files is written. */
  #stamp(): string {
    const { token, ca } = this.#options;
    return [token, ca]
      .map((path) => {
        const { ino, mtimeMs, size } = statSync(path, { throwIfNoEntry: false }) ?? {};
        return `${ino} ${mtimeMs} ${size}`;
      })
      .join(", ");
  }

  #restore(): void {
    const { store, id } = this.#options;
    try {
      const found = store.load();
      if (found) this.#requireSame(found);
      this.#certificate = found;
    } catch (error) {
      if (!(error instanceof MalformedCertificate)) throw error;
      this.#discarded = `the certificate in ${store.folder} is not used: ${error.message}. A new one for ${formatSpiffe(id)} is asked for`;
    }
  }

  async #renew(): Promise<void> {
    if (this.#busy) return;
    this.#busy = true;
    this.#files = this.#stamp();
    try {
      const { certificate, proof } = await this.#obtain();
      if (!this.#running) return;
      this.#take(certificate, proof);
    } catch (error) {
      if (!this.#running) return;
      this.#fail(reasonOf(error));
    } finally {
      this.#busy = false;
    }
    this.#sleep();
  }

  /**
   * Authenticates with the certificate while it is valid. Uses the token when there is no valid certificate, or when
   * istiod answers and rejects it.
   */
  async #obtain(): Promise<{ certificate: Certificate; proof: Proof }> {
    if (!this.current()) return { certificate: await this.#ask("token"), proof: "token" };
    try {
      return { certificate: await this.#ask(), proof: "certificate" };
    } catch (error) {
      if (!(error instanceof Refusal) || isAway(error.status) || isDistrusted(error.status)) throw error;
      try {
        return { certificate: await this.#ask("token"), proof: "token" };
      } catch (second) {
        const reason = reasonOf(second);
        throw new Error(`${reason}; it rejects our certificate, too (${error.status.details})`);
      }
    }
  }

  async #ask(proof?: "token"): Promise<Certificate> {
    const { id, clusterId, validity = VALIDITY } = this.#options;
    const open = openCredentials(this.#security, this.#target, clusterId, proof);
    const { key, csr } = await newSigningRequest(id);
    try {
      const { chain, roots } = await createCertificate(this.#target, open, csr, validity);
      const certificate = readCertificate(key, chain, roots);
      this.#requireSame(certificate);
      return certificate;
    } catch (error) {
      if (error instanceof SigningRefused) throw new Refusal(this.#explain(error, open.proof), error);
      if (error instanceof MalformedCertificate)
        throw new Error(`the certificate that istiod signed can't be used: ${error.message}`);
      throw error;
    }
  }

  /**
   * Throws MalformedCertificate when the certificate belongs to another workload. The trust domain may differ: see
   * #take.
   */
  #requireSame(certificate: Certificate): void {
    const { id } = this.#options;
    if (certificate.id.namespace === id.namespace && certificate.id.serviceAccount === id.serviceAccount)
      return;
    throw new MalformedCertificate(
      `it is ${formatSpiffe(certificate.id)}'s: --namespace and --service-account must be those of the token`,
    );
  }

  #take(certificate: Certificate, proof: Proof): void {
    const { store, id } = this.#options;
    const now = this.#clock();
    const skew = skewOf(certificate, now);
    if (skew !== 0) {
      const text = formatSkew(skew, now);
      if (!isValidAt(certificate, now))
        throw new Error(`the certificate that istiod just signed is not valid now, since ${text}`);
      this.#on({ kind: "remark", reason: text });
    }
    if (certificate.id.trustDomain !== id.trustDomain) {
      this.#on({
        kind: "remark",
        reason: `istiod's trust domain is ${certificate.id.trustDomain}, not ${id.trustDomain}: say --trust-domain ${certificate.id.trustDomain}`,
      });
    }
    this.#certificate = certificate;
    this.#due = renewalOf(certificate);
    this.#earliest = performance.now() + shortestPause(certificate);
    this.#obtained++;
    this.#failing = false;
    this.#lastError = undefined;
    this.#backoff.reset();
    try {
      store.save(certificate);
    } catch (error) {
      this.#on({
        kind: "remark",
        reason: `the new certificate can't be kept in ${store.folder}, a restart will need the token: ${reasonOf(error)}`,
      });
    }
    const { notAfter } = certificate;
    this.#on({ kind: "obtained", id: formatSpiffe(certificate.id), notAfter, renewal: this.#due, proof });
    this.#options.renewed?.();
  }

  #fail(reason: string): void {
    const now = this.#clock();
    const held = this.#certificate;
    const expired = held !== undefined && held.notAfter <= now;
    const text = expired
      ? `the certificate of ${formatSpiffe(held.id)} expired at ${time(held.notAfter)}, and there is no new one: ${reason}`
      : held !== undefined && now < held.notBefore
        ? `it is ${time(now)} by this machine's clock, and the certificate of ${formatSpiffe(held.id)} is good from ${time(held.notBefore)} on: set the clock (timedatectl set-ntp true). Nor is there a new one: ${reason}`
        : reason;
    const retry = Math.round(this.#backoff.next());
    this.#due = 0;
    this.#earliest = performance.now() + retry;
    this.#failing = true;
    this.#lastError = { at: now, text };
    this.#on({ kind: "failed", reason: text, expired, retry });
  }

  /**
   * One line with the next step. For a rejected token it names the fault in the token and the command that writes a
   * new one.
   */
  #explain(refused: SigningRefused, proof: Proof): string {
    const { id, token, istiod } = this.#options;
    if (/max allowed TTL/.test(refused.details))
      return `istiod at ${istiod} signs no certificate for so long: set --certificate-life to what it allows (${refused.details})`;
    if (refused.code !== UNAUTHENTICATED || proof !== "token")
      return explainRefusal(refused, this.#target, this.#security, proof);
    let fault: string | undefined;
    try {
      fault = faultOfToken(readToken(token), id, this.#clock());
    } catch (error) {
      if (!(error instanceof FileError)) throw error;
      fault = error.message;
    }
    return `istiod at ${this.#options.istiod} refuses the token in ${token}${fault === undefined ? "" : `, for ${fault}`}: write a fresh one with ${freshTokenCommand(id, token)} (${refused.details})`;
  }
}

/**
 * One line for a wrong clock, with the next step. `skew` in milliseconds as skewOf gives it, `now` in milliseconds
 * since the epoch by this machine's clock.
 */
export function formatSkew(skew: number, now: number): string {
  const way = skew > 0 ? "ahead of" : "behind";
  return `this machine's clock (${time(now)}) is about ${span(skew)} ${way} istiod's: set it (timedatectl set-ntp true)`;
}

/** A rejected request: the message has the next step, `status` is istiod's answer. */
class Refusal extends Error {
  readonly status: SigningRefused;
  constructor(message: string, status: SigningRefused) {
    super(message);
    this.status = status;
  }
}
