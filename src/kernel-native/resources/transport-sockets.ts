/**
 * CDS: how a cluster's endpoints are reached, from its transport sockets: transport_socket_matches in their order, the first
 * whose `match` the endpoint's metadata has; else transport_socket; else plaintext.
 */
import type { SanMatch, Transport } from "../../mesh/transport.ts";
import { HBONE_PORT } from "../../mesh/tunnel-address.ts";
import { envoy } from "./envoy.gen.js";
import { decode, decodeAny, guarded, messageName, shortName } from "./wire.ts";

/**
 * An endpoint's metadata for `match` (envoy.transport_socket_match), as a number that it carries from EDS to the cluster:
 * the sum of these. Other metadata is never sent by istiod.
 */
export const TLS_MODE_ISTIO = 1;
export const TUNNEL_HTTP = 2;
/** How many such numbers there are. */
export const METADATA_CLASSES = 4;

/** What a connection to an endpoint needs. */
export type Demand =
  | { kind: "plaintext" }
  | { kind: "transport"; transport: Transport }
  /** Nothing that kmesh speaks; `what` completes "... is demanded". */
  | { kind: "unknown"; what: string };

/** By the class of the endpoint's metadata. */
export type Demands = readonly Demand[];

const PLAINTEXT: Demand = { kind: "plaintext" };
const NO_HOST: HostCheck = { host: "", isChecked: false };

type Socket = envoy.TransportSocket.$Properties | null | undefined;
type Match = envoy.TransportSocketMatch.$Properties;

/** The service's host: the server name where an entry has none of its own. */
export interface HostCheck {
  host: string;
  /** Envoy would check the certificate for the host of the request (auto_san_validation). */
  isChecked: boolean;
}

/** Whether the cluster's HTTP options ask for that. */
export function checksHost(options: Readonly<Record<string, envoy.Any.$Properties>>): boolean {
  return Object.values(options).some(
    (config) =>
      messageName(config) === "HttpProtocolOptions" &&
      decodeAny(envoy.UpstreamHttpProtocolOptions, config).upstreamHttpProtocolOptions?.autoSanValidation ===
        true,
  );
}

/** The demands of a cluster. */
export function demandsOf(matches: readonly Match[], otherwise: Socket, host: HostCheck): Demands {
  return Array.from({ length: METADATA_CLASSES }, (_, metadata) => {
    const entry = matches.find(({ match }) => isMatched(match, metadata));
    return demandOf(entry ? entry.transportSocket : otherwise, host);
  });
}

/** An entry matches an endpoint that has all of its fields, so an empty one matches every endpoint. */
function isMatched(match: envoy.Struct.$Properties | null | undefined, metadata: number): boolean {
  return Object.entries(match?.fields ?? {}).every(([key, value]) => {
    if (key === "tlsMode" && value.stringValue === "istio") return (metadata & TLS_MODE_ISTIO) !== 0;
    return key === "tunnel" && value.stringValue === "http" && (metadata & TUNNEL_HTTP) !== 0;
  });
}

function demandOf(socket: Socket, host: HostCheck): Demand {
  if (!socket) return PLAINTEXT;
  const message = messageName(socket.typedConfig);
  if (message === "RawBuffer" || socket.name === "envoy.transport_sockets.raw_buffer") return PLAINTEXT;
  if (!socket.typedConfig) return unknown(`transport socket ${shortName(socket.name || message)}`);
  switch (message) {
    case "UpstreamTlsContext":
      return tlsOf(decodeAny(envoy.UpstreamTlsContext, socket.typedConfig), host);
    case "ProxyProtocolUpstreamTransport":
      return proxyOf(decodeAny(envoy.ProxyProtocolUpstreamTransport, socket.typedConfig), host);
    case "InternalUpstreamTransport":
      return {
        kind: "transport",
        transport: { kind: "hbone", authority: "", port: HBONE_PORT, sans: [] },
      };
    default:
      return unknown(`transport socket ${shortName(socket.name || message)}`);
  }
}

function proxyOf({ config, transportSocket }: envoy.ProxyProtocolUpstreamTransport, host: HostCheck): Demand {
  const over = demandOf(transportSocket, host);
  if (over.kind === "unknown") return over;
  // V1 is 0.
  const version = (config?.version ?? 0) === 1 ? 2 : 1;
  const transport = { kind: "proxy-protocol", version } as const;
  if (over.kind === "plaintext") return { kind: "transport", transport };
  return { kind: "transport", transport: { ...transport, over: over.transport } };
}

function tlsOf(context: envoy.UpstreamTlsContext, host: HostCheck): Demand {
  const common = context.commonTlsContext;
  const combined = common?.combinedValidationContext;
  const validation = common?.validationContext ?? combined?.defaultValidationContext;
  const sans = sansOf(validation);
  if (sans === undefined) return unknown("TLS with a name that is matched by a pattern");
  const certificate = common?.tlsCertificateSdsSecretConfigs?.[0]?.name ?? "";
  const roots =
    (common?.validationContextSdsSecretConfig ?? combined?.validationContextSdsSecretConfig)?.name ?? "";
  // The names of the mesh's own certificate and roots, which the tunnel has.
  if (certificate === "default" && roots === "ROOTCA")
    return { kind: "transport", transport: { kind: "istio", sni: context.sni, sans } };
  const own = clientFiles(certificate, common?.tlsCertificates?.[0]);
  const trusted = rootsFile(roots, validation?.trustedCa);
  if (own === undefined)
    return unknown(`TLS with the certificate ${shortName(certificate || "in the cluster")}`);
  if (trusted === undefined) return unknown(`TLS with the roots ${shortName(roots || "in the cluster")}`);
  return {
    kind: "transport",
    transport: {
      kind: "tls",
      sni: context.sni || host.host,
      sans: sans.length === 0 && host.isChecked ? [{ kind: "exact", value: context.sni || host.host }] : sans,
      roots: trusted,
      ...own,
      alpn: common?.alpnProtocols ?? [],
    },
  };
}

/**
 * The files of the client's certificate: istiod names them `file-cert:CERTIFICATE~KEY`. None for SIMPLE; undefined for
 * what is no file of this machine, as `kubernetes://NAME`.
 */
function clientFiles(
  secret: string,
  given: envoy.TlsCertificate.$Properties | undefined,
): { certificate: string; key: string } | undefined {
  if (secret === "" && given === undefined) return { certificate: "", key: "" };
  const [, fileCertificate = "", fileKey = ""] = /^file-cert:([^~]+)~([^~]+)$/.exec(secret) ?? [];
  const certificate = fileCertificate || given?.certificateChain?.filename;
  const key = fileKey || given?.privateKey?.filename;
  return certificate && key ? { certificate, key } : undefined;
}

/** "" without roots: the peer is not verified. "system" for the machine's own. */
function rootsFile(
  secret: string,
  given: envoy.DataSource.$Properties | null | undefined,
): string | undefined {
  if (secret === "" && !given) return "";
  const [, file] = /^file-root:(.+)$/.exec(secret) ?? [];
  return file || given?.filename || undefined;
}

/** undefined for a matcher that is not exact, prefix or suffix. */
function sansOf(
  validation: envoy.CertificateValidationContext.$Properties | null | undefined,
): SanMatch[] | undefined {
  const typed = validation?.matchTypedSubjectAltNames ?? [];
  const matchers =
    typed.length > 0 ? typed.map(({ matcher }) => matcher) : (validation?.matchSubjectAltNames ?? []);
  const sans: SanMatch[] = [];
  for (const matcher of matchers) {
    if (!matcher || matcher.ignoreCase) return undefined;
    if (matcher.exact) sans.push({ kind: "exact", value: matcher.exact });
    else if (matcher.prefix) sans.push({ kind: "prefix", value: matcher.prefix });
    else if (matcher.suffix) sans.push({ kind: "suffix", value: matcher.suffix });
    else return undefined;
  }
  return sans;
}

function unknown(what: string): Demand {
  return { kind: "unknown", what };
}

/** The cluster of Envoy's that carries HBONE: peers at their HBONE port are checked as it says. */
export const CONNECT_ORIGINATE = "connect_originate";

/** The SANs that peers have to have at their HBONE port. Throws MalformedResource. */
export function readHboneSans(bytes: Uint8Array): readonly SanMatch[] {
  const { transportSocket } = decode(envoy.Cluster, CONNECT_ORIGINATE, bytes);
  const [demand] = guarded(CONNECT_ORIGINATE, () => demandsOf([], transportSocket, NO_HOST));
  return demand?.kind === "transport" && "sans" in demand.transport ? demand.transport.sans : [];
}

/** The same with these SANs for HBONE. Without any, it is not spoken: any workload could pose as the peer. */
export function withHbone(demands: Demands, sans: readonly SanMatch[]): Demands {
  if (!demands.some(isHbone)) return demands;
  return demands.map((demand) => {
    if (!isHbone(demand)) return demand;
    if (sans.length === 0) return unknown("HBONE to a peer whose identity istiod does not tell");
    return { kind: "transport", transport: { ...demand.transport, sans } };
  });
}

function isHbone(demand: Demand): demand is { kind: "transport"; transport: Transport & { kind: "hbone" } } {
  return demand.kind === "transport" && demand.transport.kind === "hbone";
}
