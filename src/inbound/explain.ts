/** Explains whether a connection to this machine would be admitted, by the pinned policies. */
import { networkInterfaces } from "node:os";
import { canonicalAddress } from "../mesh/address.ts";
import { type Identity, type MtlsMode, mtlsOf, principalOf } from "../mesh/inbound.ts";
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
  decision: Decision;
  why: string[];
}

/** The text is invalid; the message says what is expected. */
export class UnclearPeer extends Error {
  constructor(message: string) {
    super(message);
    this.name = "UnclearPeer";
  }
}

/**
 * @param from ADDRESS (plaintext), PRINCIPAL ([spiffe://]TRUST-DOMAIN/ns/NS/sa/ACCOUNT), or PRINCIPAL@ADDRESS
 * @param to PORT or ADDRESS:PORT
 * Gives undefined when no policies are pinned. Throws UnclearPeer, KernelError.
 */
export function explainInbound(bpffs: string, from: string, to: string): InboundExplanation | undefined {
  const peer = peerOf(from);
  const target = targetOf(to);
  using set = openPolicySet(bpffs);
  const inbound = set?.read()?.inbound;
  if (!inbound) return undefined;
  const { address, identity } = peer;
  const { port } = target;
  const judge = judgeOf(inbound);
  const mtls = mtlsOf(inbound, port);
  const governed = judge.governs(port);
  const enforced = viewInbound(bpffs)?.enforced ?? false;
  const why: string[] = [];
  const local = address !== undefined && isLocal(address, target.address);
  let decision: Decision;
  if (!governed || local) decision = { allowed: true, reason: "not-governed" };
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
    why.push(sentenceOf(decision));
    if (address === undefined || target.address === undefined)
      why.push("an address that is not given is taken to match in a DENY and not in an ALLOW");
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
  if (at !== undefined && where === undefined) throw new UnclearPeer(`"${at}" is no address`);
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
