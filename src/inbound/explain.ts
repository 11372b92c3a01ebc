/** Explains whether a connection to this machine would be admitted, by the pinned policies and trust domains. */
import { networkInterfaces } from "node:os";
import { canonicalAddress } from "../mesh/address.ts";
import { type Identity, type Inbound, type MtlsMode, mtlsOf, principalOf } from "../mesh/inbound.ts";
import { ANYWHERE, type Decision, type Facts, factsOf, judgeOf } from "../policy/decide.ts";
import { openPolicySet } from "../policy/pinned.ts";
import { viewInbound } from "./view.ts";

export interface InboundExplanation {
  from: { address?: string; principal?: string };
  to: { address?: string; port: number };
  governed: boolean;
  mtls: MtlsMode;
  /** Whether the kernel decides by the policies now. */
  enforced: boolean;
  /** `wrong-san`: the tunnel refuses the peer's certificate, whatever the policies say. */
  decision: Decision | { allowed: false; reason: "wrong-san" };
  why: string[];
}

/** By what is decided. */
export interface InboundBasis {
  inbound: Inbound;
  enforced: boolean;
  /** The trust domain of this machine's certificate; absent: it has none. */
  trustDomain?: string | undefined;
}

/** The text is invalid; the message says what is expected. */
export class UnclearPeer extends Error {
  constructor(message: string) {
    super(message);
    this.name = "UnclearPeer";
  }
}

/**
 * Explains by the pinned set; the parameters are those of `explainPeerBy`. Gives undefined when no policies are pinned. Throws
 * UnclearPeer, KernelError.
 */
export function explainInbound(
  bpffs: string,
  trustDomain: string | undefined,
  from: string,
  to: string,
): InboundExplanation | undefined {
  using set = openPolicySet(bpffs);
  const inbound = set?.read()?.inbound;
  if (!inbound) return undefined;
  const enforced = viewInbound(bpffs)?.enforced ?? false;
  return explainPeerBy({ inbound, enforced, trustDomain }, from, to);
}

/**
 * @param from ADDRESS (plaintext), PRINCIPAL ([spiffe://]TRUST-DOMAIN/ns/NS/sa/ACCOUNT), or PRINCIPAL@ADDRESS
 * @param to PORT or ADDRESS:PORT
 * Throws UnclearPeer.
 */
export function explainPeerBy(basis: InboundBasis, from: string, to: string): InboundExplanation {
  const { inbound, enforced } = basis;
  const { address, identity } = peerOf(from);
  const target = targetOf(to);
  const { port } = target;
  const judge = judgeOf(inbound);
  const mtls = mtlsOf(inbound, port);
  const governed = judge.governs(port);
  const why: string[] = [];
  const domains = trustDomainsOf(basis);
  const isForeign = identity !== undefined && domains.length > 0 && !domains.includes(identity.trustDomain);
  const local = address !== undefined && isLocal(address, target.address);
  let decision: InboundExplanation["decision"];
  if (!governed || local) decision = { allowed: true, reason: "not-governed" };
  else if (isForeign) decision = { allowed: false, reason: "wrong-san" };
  else if (!identity && mtls === "strict") decision = { allowed: false, reason: "strict" };
  else {
    const known = factsOf(address ?? "0.0.0.0", target.address ?? "0.0.0.0", port, identity ?? "none");
    const facts: Facts = {
      ...known,
      source: address === undefined ? ANYWHERE : known.source,
      destination: target.address === undefined ? ANYWHERE : known.destination,
    };
    decision = judge.rulesOf(port).decide(facts);
  }
  if (!governed) why.push(`port ${port} belongs to no service of this machine: it is not governed`);
  else if (local) why.push("the peer is this machine itself, which is exempt");
  else {
    why.push(`mutual TLS at port ${port}: ${mtls}`);
    if (identity !== undefined && domains.length > 0)
      why.push(sentenceOfDomain(identity.trustDomain, basis.trustDomain, domains));
    if (decision.reason !== "wrong-san") {
      why.push(sentenceOf(decision));
      if (address === undefined || target.address === undefined)
        why.push("an address that is not given is taken to match in a DENY and not in an ALLOW");
    }
  }
  if (!enforced) why.push("inbound policies are not enforced now: the connection is let in all the same");
  return {
    from: { ...(address ? { address } : {}), ...(identity ? { principal: principalOf(identity) } : {}) },
    to: target,
    governed,
    mtls,
    enforced,
    decision,
    why,
  };
}

/** The trust domains whose workloads the tunnel lets in: this machine's own first. */
function trustDomainsOf({ inbound, trustDomain }: InboundBasis): string[] {
  const named = inbound.trustDomains ?? [];
  return [...new Set(trustDomain === undefined ? named : [trustDomain, ...named])];
}

function sentenceOfDomain(its: string, own: string | undefined, domains: readonly string[]): string {
  if (its === own) return `${its} is this machine's trust domain`;
  if (domains.includes(its)) return `istiod names ${its} as a trust domain of the mesh (trustDomainAliases)`;
  return `the tunnel refuses its certificate: ${its} is none of the mesh's trust domains (${domains.join(", ")})`;
}

function sentenceOf({ reason, policy, rule }: Decision): string {
  switch (reason) {
    case "strict":
      return "PeerAuthentication demands mutual TLS, and the peer sends plaintext";
    case "denied":
      return `policy ${policy} denies it (${rule})`;
    case "allowed":
      return `policy ${policy} allows it (${rule})`;
    case "no-allow-matched":
      return `there are ALLOW policies, such as ${policy}, and none allows it`;
    default:
      return "no policy denies it, and there is no ALLOW policy";
  }
}

function peerOf(text: string): { address?: string; identity?: Identity } {
  const bare = text.replace(/^spiffe:\/\//, "");
  const address = canonicalAddress(bare);
  if (address !== undefined) return { address };
  const [, trustDomain, namespace, serviceAccount, at] =
    /^([^/\s]+)\/ns\/([^/\s]+)\/sa\/([^/@\s]+)(?:@(.+))?$/.exec(bare) ?? [];
  const where = at === undefined ? undefined : canonicalAddress(at);
  if (trustDomain === undefined || namespace === undefined || serviceAccount === undefined)
    throw new UnclearPeer(`"${text}" is neither an address nor TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`);
  if (at !== undefined && where === undefined) throw new UnclearPeer(`"${at}" is not an address`);
  return { identity: { trustDomain, namespace, serviceAccount }, ...(where ? { address: where } : {}) };
}

function targetOf(text: string): { address?: string; port: number } {
  const [, host, digits = ""] = /^(?:(.+):)?(\d{1,5})$/.exec(text) ?? [];
  const port = Number(digits);
  const address = host === undefined ? undefined : canonicalAddress(host);
  if (digits === "" || port < 1 || port > 65535 || (host !== undefined && address === undefined))
    throw new UnclearPeer(`"${text}" is neither PORT nor ADDRESS:PORT`);
  return { port, ...(address ? { address } : {}) };
}

function isLocal(address: string, destination: string | undefined): boolean {
  if (address === destination || address === "::1" || address.startsWith("127.")) return true;
  return Object.values(networkInterfaces()).some((list) =>
    (list ?? []).some((each) => canonicalAddress(each.address.replace(/%.*/, "")) === address),
  );
}
