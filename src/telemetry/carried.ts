/**
 * How the tunnel carries connections to an endpoint, or of a caller, as the sixth member of the text that names the workload:
 * "workload;namespace;canonical service;revision;cluster;hbone spiffe://...". So it is kept, summed and labelled with the
 * workload. The principal is the one that the transport demands: the tunnel carries nothing to another one. It is not what a
 * peer has shown, since a series must not change its labels with the first handshake. Of a caller it is what it has proved: each identity has a
 * row of its own (src/datapath/peers.ts).
 */
import type { SanMatch, Transport } from "../mesh/transport.ts";
import type { Carried } from "./model.ts";

const WORDS: readonly string[] = ["istio", "hbone", "tls", "proxy-protocol"] satisfies Carried["by"][];
const MEMBERS = 5;

/** "istio spiffe://...": the way, and the only principal that is accepted, if it is one. */
export function carriedText(transport: Transport): string {
  if (transport.kind === "proxy-protocol")
    return transport.over ? carriedText(transport.over) : transport.kind;
  if (transport.kind === "tls") return transport.kind;
  const { sans } = transport.kind === "hbone" ? (transport.inner ?? transport) : transport;
  const principal = onlyOne(sans);
  return principal === "" ? transport.kind : `${transport.kind} ${principal}`;
}

/** The workload's text with `carried` as its sixth member. */
export function workloadText(text: string, carried: string): string {
  const members = text.split(";").slice(0, MEMBERS);
  while (members.length < MEMBERS) members.push("");
  return `${members.join(";")};${carried}`;
}

/** Undefined when the text has no sixth member: connections go as the app sends them. */
export function parseCarried(text: string): Carried | undefined {
  const [by = "", principal = ""] = text.split(";")[MEMBERS]?.split(" ") ?? [];
  if (!isWay(by)) return undefined;
  return { by, mutualTls: by === "istio" || by === "hbone", principal };
}

function isWay(by: string): by is Carried["by"] {
  return WORDS.includes(by);
}

function onlyOne(sans: readonly SanMatch[]): string {
  const [san, more] = sans;
  if (!san || more || san.kind !== "exact" || /[;\s]/.test(san.value)) return "";
  return san.value;
}
