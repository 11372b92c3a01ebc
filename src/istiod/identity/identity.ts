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

/** How long a certificate is asked for, seconds. */
const VALIDITY = 24 * 3600;
const BACKOFF: BackoffLimits = { first: 1_000, longest: 60_000 };
/** Between two renewals because istiod seemed not to like the certificate, milliseconds. */
const DOUBT = 30_000;
/** The longest sleep: a clock that was set, or a machine that slept, is noticed after so long, milliseconds. */
const NAP = 30_000;
/** The same while there is no certificate to be had: a token or root that was written anew is tried at once. */
const RESTLESS_NAP = 1_000;

/** What happens to the certificate, for the log. Times are milliseconds since the epoch. */
export type IdentityEvent =
  /** One from an earlier process is used. */
  | { kind: "reused"; id: string; notAfter: number; renewal: number }
  | { kind: "obtained"; id: string; notAfter: number; renewal: number; proof: Proof }
  /** The one before, if there was one, stays in use as long as it lives. The next attempt follows in `retry` ms. */
  | { kind: "failed"; reason: string; expired: boolean; retry: number }
  /** Something that should be mended; what was asked for worked all the same. */
  | { kind: "remark"; reason: string };

/** The identity as `kmesh status` shows it. Times are milliseconds since the epoch. */
export interface IdentityStatus {
  /** As configured, or as istiod certified it. */
  id: string;
  /** Absent while there is no certificate; it may have expired. */
  certificate?: { serial: string; notBefore: number; notAfter: number; valid: boolean };
  /** When the next one is asked for; 0 while attempts fail. */
  renewal: number;
  /** Certificates obtained by this process. */
  obtained: number;
  lastError?: { at: number; text: string };
}

export interface IdentityOptions {
  /** `HOST:PORT` of istiod's CA. */
  istiod: string;
  /** Addresses of names that are not to be looked up. */
  hosts?: Hosts;
  id: SpiffeId;
  /** The root certificates' file, and the token's. */
  ca: string;
  token: string;
  clusterId?: string;
  store: CertificateStore;
  /** Told of what happens; must not throw. */
  on?(event: IdentityEvent): void;
  /** There is a new certificate. */
  renewed?(): void;
  /** Seconds. */
  validity?: number;
  /** Milliseconds since the epoch. */
  clock?(): number;
  backoff?: BackoffLimits;
}

/**
 * This workload's certificate: found in the store or obtained with the token, renewed at half of its life with the
 * certificate itself, with the token when that is not accepted. A failure takes nothing away.
 */
export class WorkloadIdentity implements CertificateSource {
  readonly #options: IdentityOptions;
  readonly #target: Target;
  readonly #security: Security;
  readonly #on: (event: IdentityEvent) => void;
  readonly #clock: () => number;
  readonly #backoff: Backoff;
  #certificate: Certificate | undefined;
  /** What was wrong with the stored one. */
  #discarded: string | undefined;
  /** The next attempt is due when the wall clock says so, but not before this monotonic time. */
  #due = 0;
  #earliest = 0;
  #doubtful = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #running = false;
  #busy = false;
  #failing = false;
  /** The token's and the roots' files as of the last attempt. */
  #files = "";
  #obtained = 0;
  #lastError: { at: number; text: string } | undefined;

  /** Looks into the store, and nowhere else. */
  constructor(options: IdentityOptions) {
    this.#options = options;
    this.#target = parseTarget(options.istiod, options.hosts);
    this.#security = { kind: "tls", ca: options.ca, token: options.token, identity: this };
    this.#on = options.on ?? (() => {});
    this.#clock = options.clock ?? Date.now;
    this.#backoff = new Backoff(options.backoff ?? BACKOFF);
    this.#restore();
  }

  /** Uses the stored certificate while it is valid, else asks for one. Resolves when there is one, or after the first refusal. */
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
   * Asks for a certificate as a renewal would, and keeps nothing of it. Gives what it was asked for with, and how far
   * our clock is ahead of istiod's (negative: behind), milliseconds. Rejects with an Error of one line.
   */
  async tryOut(): Promise<{ proof: Proof; skew: number; trustDomain: string }> {
    const { certificate, proof } = await this.#obtain();
    const { trustDomain } = certificate.id;
    return { proof, skew: skewOf(certificate, this.#clock()), trustDomain };
  }

  /** Asks no more. */
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

  /** Renews now, unless that is being tried anyway or was done a moment ago. */
  doubt(): void {
    const now = performance.now();
    if (!this.#running || this.#busy || this.#failing || now < this.#doubtful) return;
    this.#doubtful = now + DOUBT;
    this.#due = 0;
    this.#earliest = 0;
    this.#sleep();
  }

  /** Only while there is none that could be shown: until then the stream's troubles are its own. */
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

  /** Sleeps until the next attempt is due. Retries don't hang on the wall clock: it may be what is wrong. */
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

  /** Changes when one of the files is written. */
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

  /** With the certificate while it is valid; with the token when there is none or istiod is there and wants none of it. */
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
        throw new Error(`${reason}; nor does it take our certificate (${error.status.details})`);
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
        throw new Error(`what istiod signed can't be used: ${error.message}`);
      throw error;
    }
  }

  /** Throws MalformedCertificate when it is another workload's. A trust domain may be renamed: see #take. */
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

  /** One line with the next step. A token is looked into, and the command that mends it is given. */
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

/** A clock that is off, with the next step. `skew` as skewOf gives it, `now` the wrong time. */
export function formatSkew(skew: number, now: number): string {
  const way = skew > 0 ? "ahead of" : "behind";
  return `this machine's clock (${time(now)}) is about ${span(skew)} ${way} istiod's: set it (timedatectl set-ntp true)`;
}

/** What istiod said, told with the next step. */
class Refusal extends Error {
  readonly status: SigningRefused;
  constructor(message: string, status: SigningRefused) {
    super(message);
    this.status = status;
  }
}
