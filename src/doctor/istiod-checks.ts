/** The checks on the way to istiod: its name, a connection, TLS, the certificate; and what the agent makes of it. */

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
import { time } from "../istiod/identity/token.ts";
import { describeTarget, formatTarget, parseTarget, serverName, type Target } from "../istiod/target.ts";
import { identityStore } from "../machine/identity-store.ts";
import { type Check, errorFinding, type Finding } from "./check-runner.ts";

/** For an answer of the network, milliseconds. */
const PATIENCE = 5_000;
/** gRPC's code for a peer that can't be spoken to. */
const UNAVAILABLE = 14;

export function istiodChecks(config: Config): Check[] {
  const target: Target = { ...config.istiod, ...addressesOf(config) };
  const security: Security =
    config.plaintext || config.ca === undefined
      ? { kind: "plaintext" }
      : { kind: "tls", ca: config.ca, ...(config.token === undefined ? {} : { token: config.token }) };
  /** Filled by the first check for the second. */
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

/** The address that answers is the first one afterwards: the checks that follow speak to it. */
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
    failures.push(`${place}: ${fault}`);
  }
  const refused = failures.every((failure) => failure.includes("ECONNREFUSED"));
  return [
    {
      state: "error",
      text: `no connection to istiod: ${failures.join("; ")}`,
      cure: refused
        ? "The machine is there, and nothing listens: see that istiod runs, and that the port is its (15012, with --plaintext 15010)."
        : "See that the address is istiod's (or its gateway's), that it is routed, and that no firewall drops it.",
    },
  ];
}

async function lookAtTls(
  target: Target,
  security: Security,
  addresses: readonly string[],
): Promise<Finding[]> {
  if (security.kind === "plaintext")
    return [
      {
        state: "warning",
        text: "not used (--plaintext): istiod and this machine take each other at their word",
      },
    ];
  let ca: Buffer;
  try {
    ca = readRoots(security.ca, "");
  } catch (error) {
    if (!(error instanceof FileError)) throw error;
    return [errorFinding(error, "Write the mesh's root there anew.")];
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
    return [{ state: "error", text: what, cure: capital(next.join(": ")) }];
  }
  const until = seen.until === undefined ? "" : `, until ${time(seen.until)}`;
  return [{ state: "ok", text: `${seen.version ?? "TLS"}; istiod proves that it is ${name}${until}` }];
}

function describe(socket: TLSSocket): { until?: number; version?: string } {
  const until = Date.parse(socket.getPeerCertificate().valid_to ?? "");
  const version = socket.getProtocol();
  return { ...(Number.isNaN(until) ? {} : { until }), ...(version === null ? {} : { version }) };
}

/** Has a certificate signed, of which nothing is kept: that proves token or certificate, and tells istiod's time. */
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
    const { proof, skew } = await identity.tryOut();
    const well: Finding = { state: "ok", text: `${id}: ${kept}; istiod signs another for the ${proof}` };
    if (skew === 0) return [well];
    const [text = "", cure = ""] = formatSkew(skew, Date.now()).split(/: (?=set it)/);
    return [well, { state: "error", text, cure: capital(cure) }];
  } catch (error) {
    const reason = reasonOf(error);
    const [what = reason, ...next] = reason.split(/: (?=write a fresh|pass |set |--namespace|nor )/);
    return [
      {
        state: "error",
        text: `${kept}, and there is no new one: ${what}`,
        cure: capital(next.join(": ")) || "See istiod's log.",
      },
    ];
  }
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
  const { pid, stream, tables } = status;
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
  if (tables.lastError)
    return [
      {
        state: "error",
        text: `it runs (pid ${pid}), and not all is live: ${tables.lastError.text}`,
        cure: "Look at its log: journalctl -u kmesh.",
      },
    ];
  return [
    {
      state: "ok",
      text: `runs (pid ${pid}), connected to istiod at ${describeTarget(parseTarget(stream.target))}`,
    },
  ];
}

/** Waits for the event, and ends the socket. Gives what went wrong. */
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
