/** The checks of the connection to istiod: name, connection, TLS, certificate; and the state of the agent. */

import { createSocket } from "node:dgram";
import { lookup } from "node:dns/promises";
import { connect as connectTcp, isIP } from "node:net";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { askAgent } from "../admin/client.ts";
import { type AgentStatus, adminSocket } from "../admin/status.ts";
import type { Config } from "../config/config.ts";
import { codeOf, codeOrReason, reasonOf } from "../errors/reason.ts";
import { FileError } from "../istiod/file-error.ts";
import { explainRefusal, readRoots, type Security } from "../istiod/identity/credentials.ts";
import { formatSkew, WorkloadIdentity } from "../istiod/identity/identity.ts";
import { faultOfToken, freshTokenCommand, readToken, time } from "../istiod/identity/token.ts";
import type { SpiffeId } from "../istiod/spiffe.ts";
import { describeTarget, formatTarget, parseTarget, serverName, type Target } from "../istiod/target.ts";
import { identityStore } from "../machine/identity-store.ts";
import { type Check, errorFinding, type Finding } from "./check-runner.ts";

/** Time limit of an answer from the network, milliseconds. */
const PATIENCE = 5_000;
/** gRPC's status code for an unreachable peer. */
const UNAVAILABLE = 14;

export function istiodChecks(config: Config): Check[] {
  const target: Target = { ...config.istiod, ...addressesOf(config) };
  const security: Security =
    config.plaintext || config.ca === undefined
      ? { kind: "plaintext" }
      : { kind: "tls", ca: config.ca, ...(config.token === undefined ? {} : { token: config.token }) };
  /** Set by the check of the name, for the checks after it. */
  const addresses: string[] = [];
  return [
    { name: "name", needs: ["configuration"], look: () => lookUp(target, addresses) },
    { name: "connection", needs: ["name"], look: () => lookAtConnection(target, addresses) },
    { name: "TLS", needs: ["connection"], look: () => lookAtTls(target, security, addresses) },
    { name: "identity", needs: ["files", "TLS"], look: () => lookAtIdentity(config, security) },
    { name: "agent", needs: ["identity"], look: () => lookAtAgent(config) },
  ];
}

function addressesOf({ istiod, hosts }: Config): { addresses?: readonly string[] } {
  const addresses = Object.hasOwn(hosts, istiod.host) ? hosts[istiod.host] : undefined;
  return addresses === undefined ? {} : { addresses };
}

async function lookUp({ host, addresses: given }: Target, addresses: string[]): Promise<Finding[]> {
  const [alias] = given ?? [];
  if (alias !== undefined && isIP(alias) === 0)
    return lookUpName(alias, `${host} is ${alias}, by --hosts: `, addresses);
  if (given !== undefined || isIP(host) !== 0) {
    addresses.push(...(given ?? [host]));
    const text = given === undefined ? `${host} is an address` : `${host} is ${given.join(", ")}, by --hosts`;
    return [{ state: "ok", text }];
  }
  return lookUpName(host, "", addresses);
}

/** `before` begins each finding's text. */
async function lookUpName(host: string, before: string, addresses: string[]): Promise<Finding[]> {
  try {
    addresses.push(...(await lookup(host, { all: true })).map((each) => each.address));
  } catch (error) {
    const code = codeOrReason(error);
    return [
      {
        state: "error",
        text: `${before}${host} is not known (${code})`,
        cure:
          before === ""
            ? `Give its address with --hosts ${host}=ADDRESS (the file hosts of istioctl has it), or in /etc/hosts.`
            : "Check the name and this machine's DNS, or give --hosts an address.",
      },
    ];
  }
  return [{ state: "ok", text: `${before}${host} is ${addresses.join(", ")}` }];
}

/** Moves the address that answers to the front, because the following checks use the first one. */
async function lookAtConnection(target: Target, addresses: string[]): Promise<Finding[]> {
  const { port } = target;
  const failures: string[] = [];
  for (const [i, address] of addresses.entries()) {
    const place = formatTarget({ host: address, port });
    const began = performance.now();
    const fault = await connected(connectTcp({ host: address, port }), "connect");
    if (fault === undefined) {
      const took = Math.max(1, Math.round(performance.now() - began));
      addresses.unshift(...addresses.splice(i, 1));
      const ok: Finding = { state: "ok", text: `${place} accepts connections (${took} ms)` };
      if (failures.length === 0) return [ok];
      const cure =
        "The next one is tried each time: see that it is istiod's, routed, and that no firewall drops it.";
      return [ok, { state: "warning", text: `but not ${failures.join("; ")}`, cure }];
    }
    const routed = !fault.includes("ECONNREFUSED") || (await isRouted(address, port));
    failures.push(`${place}: ${routed ? fault : "no route leads there (ENETUNREACH)"}`);
  }
  const text = `no connection to istiod: ${failures.join("; ")}`;
  return [{ state: "error", text, cure: cureOf(failures, addresses[0] ?? target.host, port) }];
}

/** Whether there is a route. A runtime may report a missing route as a refused connection. Connecting a UDP socket sends nothing. */
async function isRouted(address: string, port: number): Promise<boolean> {
  const socket = createSocket(isIP(address) === 6 ? "udp6" : "udp4");
  try {
    return await new Promise<boolean>((resolve) => {
      socket.once("error", () => resolve(false));
      socket.once("connect", () => resolve(true));
      socket.connect(port, address, (error?: unknown) => resolve(error === undefined || error === null));
    });
  } catch {
    return false;
  } finally {
    socket.close();
  }
}

/** The next step, by the kernel's error of each attempt. */
function cureOf(failures: readonly string[], address: string, port: number): string {
  const all = (...codes: string[]) => failures.every((text) => codes.some((code) => text.includes(code)));
  if (all("ECONNREFUSED"))
    return "The machine is there, and nothing listens: see that istiod runs, and that the port is its (15012, with --plaintext 15010).";
  if (all("EPERM", "EACCES"))
    return "This machine's own firewall or another BPF program rejects it: nft list ruleset, bpftool cgroup tree.";
  if (all("ENETUNREACH", "EHOSTUNREACH"))
    return `See where it would go: ip route get ${address}. An address of the family that this machine has is named by --hosts.`;
  if (all("no answer"))
    return `Nothing comes back: a firewall drops it (TCP port ${port} must be open from this machine on), or the address is not istiod's.`;
  return "See that the address is istiod's (or its gateway's), that it is routed, and that no firewall drops it.";
}

async function lookAtTls(
  target: Target,
  security: Security,
  addresses: readonly string[],
): Promise<Finding[]> {
  if (security.kind === "plaintext") return lookAtPlaintext(target, addresses);
  let ca: Buffer;
  try {
    ca = readRoots(security.ca, "");
  } catch (error) {
    if (!(error instanceof FileError)) throw error;
    return [errorFinding(error, "Write the mesh's root certificate to it again.")];
  }
  const name = serverName(target);
  const socket = connectTls({
    host: addresses[0] ?? target.host,
    port: target.port,
    ca,
    ALPNProtocols: ["h2"],
    ...(isIP(name) ? {} : { servername: name }),
  });
  const seen: { until?: number; version?: string } = {};
  socket.once("secureConnect", () => Object.assign(seen, describe(socket)));
  const fault = await connected(socket, "secureConnect");
  if (fault !== undefined) {
    const text = explainRefusal({ code: UNAVAILABLE, details: fault }, target, security);
    const [what = text, ...next] = text.split(": ");
    const [cure, said] = withoutReason(next.join(": "));
    return [{ state: "error", text: `${what}${said}`, cure: capital(cure) }];
  }
  const until = seen.until === undefined ? "" : `, until ${time(seen.until)}`;
  return [{ state: "ok", text: `${seen.version ?? "TLS"}; istiod proves that it is ${name}${until}` }];
}

/** HTTP/2 with prior knowledge (RFC 9113, 3.4): the preface, and an empty SETTINGS frame, which is answered with one. */
const HTTP2_HELLO = Buffer.concat([
  Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
  Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0]),
]);

/** Without TLS this only shows whether the server speaks gRPC; it proves no identity. */
async function lookAtPlaintext({ host, port }: Target, addresses: readonly string[]): Promise<Finding[]> {
  const socket = connectTcp({ host: addresses[0] ?? host, port });
  let first: Buffer = Buffer.alloc(0);
  socket.once("connect", () => socket.write(HTTP2_HELLO));
  socket.on("data", (data: Buffer) => {
    first = Buffer.concat([first, data]);
    if (first.length >= 4) socket.emit("answered");
  });
  const fault = await connected(socket, "answered");
  const place = formatTarget({ host: addresses[0] ?? host, port });
  // The type of the first frame; 0x15 begins an alert of TLS.
  if (fault === undefined && first[3] === 4)
    return [
      {
        state: "warning",
        text: "not used (--plaintext): istiod and this machine take each other at their word",
      },
    ];
  const isTls = first[0] === 0x15;
  const what = isTls
    ? "it speaks TLS"
    : first.toString("latin1").startsWith("HTTP/1")
      ? "it is an HTTP/1 server"
      : (fault ?? "it speaks no HTTP/2");
  return [
    {
      state: "error",
      text: `${place} does not speak gRPC without TLS: ${what}`,
      cure: "istiod's plaintext port is 15010. For its TLS port (15012) take out plaintext, and name ca and token.",
    },
  ];
}

function describe(socket: TLSSocket): { until?: number; version?: string } {
  const until = Date.parse(socket.getPeerCertificate().valid_to ?? "");
  const version = socket.getProtocol();
  return { ...(Number.isNaN(until) ? {} : { until }), ...(version === null ? {} : { version }) };
}

/** Requests a certificate and discards it. That tests the token or certificate and shows istiod's clock. */
async function lookAtIdentity(config: Config, security: Security): Promise<Finding[]> {
  if (security.kind === "plaintext" || config.ca === undefined)
    return [{ state: "warning", text: "not proven (--plaintext)" }];
  const { namespace, serviceAccount, trustDomain, clusterId, token, hosts } = config;
  if (token === undefined)
    return [
      {
        state: "error",
        text: "without a token no certificate can be asked for",
        cure: "Name one with --token FILE.",
      },
    ];
  const store = identityStore(config.stateDir);
  const identity = new WorkloadIdentity({
    istiod: formatTarget(config.caServer ?? config.istiod),
    hosts,
    id: { trustDomain, namespace, serviceAccount },
    ca: config.ca,
    token,
    clusterId,
    validity: config.certificateLife,
    store,
  });
  const { id, certificate } = identity.status();
  const kept = certificate
    ? certificate.valid
      ? `the certificate is good until ${time(certificate.notAfter)}`
      : `the certificate EXPIRED at ${time(certificate.notAfter)}`
    : "no certificate yet";
  try {
    const { proof, skew, trustDomain: issued } = await identity.tryOut();
    const well: Finding[] = [{ state: "ok", text: `${id}: ${kept}; istiod signs another for the ${proof}` }];
    if (issued !== trustDomain)
      well.push({
        state: "warning",
        text: `istiod's trust domain is ${issued}, not ${trustDomain}: this machine is not who it says it is`,
        cure: `Set trust-domain: ${issued}`,
      });
    if (skew === 0) return well;
    const [text = "", cure = ""] = formatSkew(skew, Date.now()).split(/: (?=set it)/);
    return [...well, { state: "error", text, cure: capital(cure) }];
  } catch (error) {
    const reason = reasonOf(error);
    const [what = reason, ...next] = reason.split(/: (?=write a fresh|pass |set |--namespace|nor )/);
    const [cure, said] = withoutReason(next.join(": "));
    // A well-formed token is refused by an istiod with another cluster's keys.
    const fits =
      what.includes("refuses the token") && isFitting(token, { namespace, serviceAccount, trustDomain });
    const cluster = `, or cluster-id (${clusterId}) is not this cluster's name: ISTIO_META_CLUSTER_ID of cluster.env has it`;
    return [
      {
        state: "error",
        text: `${kept}, and there is no new one: ${what}${said}`,
        cure: fits
          ? `It looks right, so it is another cluster's or was revoked (a fresh one: ${freshTokenCommand({ namespace, serviceAccount, trustDomain }, token)})${cluster}`
          : capital(cure) || "See istiod's log.",
      },
    ];
  }
}

/** Whether the token in `file` is well-formed and not expired. */
function isFitting(file: string, id: SpiffeId): boolean {
  try {
    return faultOfToken(readToken(file), id, Date.now()) === undefined;
  } catch (error) {
    if (error instanceof FileError) return false;
    throw error;
  }
}

/** A next step, followed by its reason in brackets. Inside the command the reason would be pasted, too. */
function withoutReason(next: string): [next: string, reason: string] {
  const [, step = next, reason = ""] = /^(.*)( \(.*\))$/s.exec(next) ?? [];
  return [step, reason];
}

async function lookAtAgent(config: Config): Promise<Finding[]> {
  let status: AgentStatus | undefined;
  try {
    status = (await askAgent(adminSocket(config.runDir), "/agent")) as AgentStatus | undefined;
  } catch (error) {
    return [errorFinding(error, "Look at its log: journalctl -u kmesh.")];
  }
  if (!status) {
    return [
      { state: "warning", text: "no agent runs; what is pinned works on", cure: "systemctl start kmesh" },
    ];
  }
  return agentFindings(status);
}

/** What a running agent says of itself. */
export function agentFindings({ pid, stream, tables, workloads, inbound }: AgentStatus): Finding[] {
  if (!stream.connected) {
    const said = stream.lastError?.text ?? "it has not tried yet";
    return [
      {
        state: "error",
        text: `it runs (pid ${pid}), and is not connected to istiod: ${said}`,
        cure: "All above is well, so it should be soon: kmesh status, and journalctl -u kmesh.",
      },
    ];
  }
  if (workloads?.ambientLacking)
    return [
      {
        state: "error",
        text: `it runs (pid ${pid}) in dual-engine mode, and istiod sent no service and no workload: it runs without ambient`,
        cure: "Set PILOT_ENABLE_AMBIENT=true in istiod's environment, or mode: kernel-native here. Until then the tables are unchanged.",
      },
    ];
  if (tables.lastError)
    return [
      {
        state: "error",
        text: `it runs (pid ${pid}), and not all is live: ${tables.lastError.text}`,
        cure: "Look at its log: journalctl -u kmesh.",
      },
    ];
  const policies: Finding[] = [];
  if (workloads && workloads.unknownPolicies.length > 0)
    policies.push({
      state: "warning",
      text: `every connection from outside is refused: istiod names policies for this machine that it has not sent (${workloads.unknownPolicies.join(", ")})`,
      cure: "Look whether they exist: kubectl get authorizationpolicies,peerauthentications -A. It ends when istiod sends or drops them.",
    });
  if (inbound?.trouble !== undefined)
    policies.push({
      state: "warning",
      text: `inbound policies are not up to date: ${inbound.trouble}`,
      cure: "kmesh status says which policies are live; the agent tries again every five seconds.",
    });
  if (policies.length > 0) return policies;
  return [
    {
      state: "ok",
      text: `runs (pid ${pid}), connected to istiod at ${describeTarget(parseTarget(stream.target))}`,
    },
  ];
}

/** Waits for the event and closes the socket. Returns the error; undefined on success. */
function connected(
  socket: ReturnType<typeof connectTcp> | TLSSocket,
  event: string,
): Promise<string | undefined> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => finish(`no answer within ${PATIENCE / 1000} s`), PATIENCE);
    const finish = (fault?: string) => {
      clearTimeout(timer);
      resolve(fault);
      socket.destroy();
    };
    socket.once(event, () => finish());
    socket.on("error", (error: Error) => {
      const code = codeOf(error) ?? "";
      finish(error.message.includes(code) ? error.message : `${code} ${error.message}`);
    });
    socket.once("close", () => finish("it closed the connection"));
  });
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
