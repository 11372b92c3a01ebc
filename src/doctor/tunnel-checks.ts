/** The checks of the tunnel: sockets, who has its ports, process, certificate. */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import type { Config } from "../config/config.ts";
import { reasonOf } from "../errors/reason.ts";
import { hasListener } from "../inbound/view.ts";
import type { Certificate } from "../istiod/identity/certificate.ts";
import { time } from "../istiod/identity/token.ts";
import { identityStore } from "../machine/identity-store.ts";
import { usesTunnel } from "../machine/tunnel/listener.ts";
import { type ListenerState, listenerStates, TUNNEL } from "../machine/tunnel/sockets.ts";
import { mtlsOf } from "../mesh/inbound.ts";
import { openPolicySet } from "../policy/pinned.ts";
import { readTunnels, type TunnelStatus } from "../tunnel/process/status-file.ts";
import type { Check, Finding } from "./check-runner.ts";

/** How long systemctl may take, milliseconds. */
const PATIENCE = 3_000;

/** Part of a certificate's life that is left when it should have been renewed long before: kmesh renews at half. */
const LATE = 0.25;

export function tunnelChecks(config: Config): Check[] {
  return [{ name: "tunnel", needs: [], look: () => lookAtTunnel(config) }];
}

function lookAtTunnel(config: Config): Finding[] {
  if (config.tunnel === "off") return [{ state: "ok", text: "off (tunnel: off)" }];
  const states = listenerStates();
  const needed = strictPorts(config.bpffs);
  const isWanted = config.tunnel === "on" || usesTunnel(config) || needed.length > 0;
  // Not wanted, and no part of it is there.
  if (!isWanted && states.every(({ state }) => state !== "listens"))
    return [{ state: "ok", text: "not used: no socket of it listens, and nothing demands it" }];
  const processes = readTunnels(config.runDir);
  const findings = [
    ...states.flatMap(socketFinding),
    ...unitFindings(readUnit()),
    ...offerFindings(config, needed),
    ...processFindings(processes),
    ...certificateFindings(config),
  ];
  if (findings.length > 0) return findings;
  const accepting = processes.find(({ draining }) => !draining);
  const runs = accepting ? `pid ${accepting.pid} runs` : "it starts with the first connection";
  return [{ state: "ok", text: `its sockets listen; ${runs}` }];
}

/** What is wrong with one socket. */
export function socketFinding({ unit, port, state, holder }: ListenerState): Finding[] {
  if (state === "listens") return [];
  if (state === "taken")
    return [
      {
        state: "error",
        text: `port ${port} of the tunnel is another program's${holder === undefined ? "" : ` (user ${holder})`}`,
        cure: `See whose it is with ss -ltnp 'sport = :${port}', stop that program, then: systemctl start ${unit}`,
      },
    ];
  return [
    {
      state: "warning",
      text: `nothing listens at port ${port} for the tunnel`,
      cure: existsSync("/run/systemd/system")
        ? `systemctl start ${unit} (systemd starts no socket of a service that runs: systemctl stop kmesh-tunnel first, which ends its connections)`
        : "Run kmesh tunnel.",
    },
  ];
}

/** What systemd says of the tunnel's service; "" without systemd. */
function readUnit(): string {
  const asked = ["show", "--property=ActiveState,Result,ExecMainStatus,NRestarts", TUNNEL];
  const { status, stdout } = spawnSync("systemctl", asked, { encoding: "utf8", timeout: PATIENCE });
  return status === 0 ? stdout : "";
}

/** Whether it crashed, by lines `NAME=VALUE` of systemctl show. systemd starts it again with each connection. */
export function unitFindings(shown: string): Finding[] {
  const value = (name: string) => new RegExp(`^${name}=(.*)$`, "m").exec(shown)?.[1] ?? "";
  const restarts = Number(value("NRestarts"));
  const times = restarts === 1 ? "once" : `${restarts} times`;
  const again = restarts > 0 ? `, and systemd has started it again ${times}` : "";
  const cure = `journalctl -u ${TUNNEL} -n 20 says why.`;
  if (!["", "success"].includes(value("Result")))
    return [
      {
        state: "error",
        text: `${TUNNEL} has ended with a fault (${value("Result")}, status ${value("ExecMainStatus")})${again}: connections that need it wait or are reset`,
        cure,
      },
    ];
  if (restarts === 0 || value("ActiveState") !== "active") return [];
  return [
    {
      state: "warning",
      text: `${TUNNEL} runs${again}: each crash has cut its connections`,
      cure,
    },
  ];
}

/** Service ports that demand mutual TLS, from the pins. */
function strictPorts(bpffs: string): number[] {
  try {
    using set = openPolicySet(bpffs);
    const inbound = set?.read()?.inbound;
    return inbound ? inbound.ports.filter((port) => mtlsOf(inbound, port) === "strict") : [];
  } catch {
    // Another check says what is wrong with the pins.
    return [];
  }
}

function offerFindings({ bpffs }: Config, strict: readonly number[]): Finding[] {
  if (strict.length === 0 || hasListener(bpffs)) return [];
  return [
    {
      state: "error",
      text: `port ${strict.join(", ")} demands mutual TLS, and no tunnel has started since the policies were pinned: every peer is refused`,
      cure: "systemctl start kmesh-tunnel, and see journalctl -u kmesh-tunnel if it ends.",
    },
  ];
}

function processFindings(processes: readonly TunnelStatus[]): Finding[] {
  return processes
    .filter(({ draining }) => !draining)
    .flatMap(({ certificate: { valid, trouble } }): Finding[] =>
      valid && trouble === undefined
        ? []
        : [
            {
              state: valid ? "warning" : "error",
              text: `the tunnel can't use the certificate: ${trouble ?? "it has expired"}`,
              cure: "kmesh cert shows it, and kmesh status why the agent does not renew it.",
            },
          ],
    );
}

function certificateFindings({ stateDir, plaintext }: Config): Finding[] {
  // Nothing is led to it then.
  if (plaintext) return [];
  let certificate: Certificate | undefined;
  try {
    certificate = identityStore(stateDir).load();
  } catch (error) {
    return [{ state: "error", text: reasonOf(error), cure: "kmesh cert says more." }];
  }
  return certificate
    ? certificateFinding(certificate, Date.now())
    : [
        {
          state: "error",
          text: "this machine has no certificate, so no peer can be reached by mutual TLS",
          cure: "kmesh status says why istiod gives none.",
        },
      ];
}

/** Times are milliseconds since the epoch. */
export function certificateFinding(
  { notBefore, notAfter }: Pick<Certificate, "notBefore" | "notAfter">,
  now: number,
): Finding[] {
  const cure = "The agent renews it at half of its life: kmesh status says why it does not.";
  if (now > notAfter)
    return [{ state: "error", text: `the certificate ended at ${time(notAfter)}: peers refuse it`, cure }];
  if (notAfter - now < (notAfter - notBefore) * LATE)
    return [
      { state: "warning", text: `the certificate ends at ${time(notAfter)} and was not renewed`, cure },
    ];
  return [];
}
