/**
 * The agent's connection to istiod: the identity (addresses, certificate, registration), the received configuration,
 * which a compiler turns into a mesh, and the reported health of the application. It does not know the kernel's tables.
 */

import { isDeepStrictEqual } from "node:util";
import type { AgentStatus, RegistrationStatus } from "../admin/status.ts";
import { type Config, requireReadable } from "../config/config.ts";
import type { Log } from "../config/log.ts";
import { DualEngine } from "../dual-engine/dual-engine.ts";
import { reasonOf } from "../errors/reason.ts";
import { parseProbe } from "../health/probe.ts";
import { HealthWatch } from "../health/watch.ts";
import type { Security } from "../istiod/identity/credentials.ts";
import { WorkloadIdentity } from "../istiod/identity/identity.ts";
import { type Identity, UNREACHED } from "../istiod/node.ts";
import { differencesOf, registrationOf } from "../istiod/registration.ts";
import type { ResourceSink } from "../istiod/stream/sink.ts";
import type { StreamEvent } from "../istiod/stream/status.ts";
import { IstiodStream } from "../istiod/stream/stream.ts";
import { formatTarget } from "../istiod/target.ts";
import { KernelNative } from "../kernel-native/kernel-native.ts";
import { type Reflected, Reflection } from "../kernel-native/reflection.ts";
import { AddressWatch } from "../machine/address-watch.ts";
import { machineAddresses } from "../machine/addresses.ts";
import { identityStore } from "../machine/identity-store.ts";
import { nodeIdentity } from "../machine/node.ts";
import { noteAbsence, STAY_AWAY, wasAwayOfLate } from "../machine/tunnel/absence.ts";
import { tunnelUse } from "../machine/tunnel/listener.ts";
import { formatUse, ReachWatch, type TunnelUse } from "../machine/tunnel/reach-watch.ts";
import { mtlsOf } from "../mesh/inbound.ts";
import type { Changes, Mesh } from "../mesh/model.ts";
import type { WorkloadIndex } from "../mesh/workload.ts";
import type { Reporter } from "./reporter.ts";

/** The address in the node of a machine that has none yet. It is never sent (RFC 5737). */
const UNSPOKEN = "192.0.2.0";

/** The interface of both modes' compilers. */
type Engine = KernelNative | DualEngine;

export interface ControlPlaneOptions {
  /** Receives the workload of each endpoint. */
  workloads: WorkloadIndex;
  config: Config;
  /** The machine's addresses, the primary one first; may be empty at first. */
  addresses: string[];
  log: Log;
  reporter: Reporter;
  /** A push is complete. */
  publish(mesh: Mesh, changes: Changes): void;
  /** An event of the stream. */
  heard(event: StreamEvent): void;
  /** Certificate, registration or health changed. */
  changed(): void;
  /** The machine's addresses changed, so it is another node: the agent must restart. */
  moved(): void;
}

export class ControlPlane {
  readonly #options: ControlPlaneOptions;
  readonly #engine: Engine;
  readonly #identity: WorkloadIdentity | undefined;
  /** What istiod is told of the tunnel. */
  #use: TunnelUse;
  #stream: IstiodStream;
  readonly #health: HealthWatch | undefined;
  #registration: RegistrationStatus | undefined;
  #addressWatch: AddressWatch | undefined;
  #reachWatch: ReachWatch | undefined;
  #awayTimer: ReturnType<typeof setTimeout> | undefined;
  /** Some port of this machine's services demands mutual TLS. */
  #strict = false;
  #stopped = false;

  /** Sends nothing yet. Throws ConfigError when a required token can't be read. */
  constructor(options: ControlPlaneOptions) {
    this.#options = options;
    this.#identity = this.#openIdentity();
    const certificate = this.#identity?.status().certificate;
    // A certificate that is missing is requested before the stream starts.
    this.#use = tunnelUse(options.config, this.#identity !== undefined && certificate?.valid !== false);
    const node = this.#node();
    this.#registration = this.#nameless ? undefined : registrationOf(node);
    this.#health = this.#openHealth();
    this.#engine = this.#openEngine(node);
    this.#stream = this.#openStream(node);
  }

  /** Without an address the stream is created but not started. */
  #node(): Identity {
    const { config, addresses } = this.#options;
    return nodeIdentity(config, this.#nameless ? [UNSPOKEN] : addresses, this.#use);
  }

  #openStream(node: Identity): IstiodStream {
    const { config, heard } = this.#options;
    return new IstiodStream({
      istiod: formatTarget(config.istiod),
      security: securityOf(config, this.#identity),
      hosts: config.hosts,
      identity: node,
      mode: config.mode,
      sink: this.#sinkFor(node),
      on: heard,
    });
  }

  get connected(): boolean {
    return this.#stream.status().connected;
  }

  /** Whether istiod's configuration is known. */
  get synced(): boolean {
    return this.#stream.status().synced && this.#dualEngine?.status().ambientLacking !== true;
  }

  /** For the agent's status. */
  status(): Pick<AgentStatus, "identity" | "registration" | "health" | "stream" | "workloads"> {
    const workloads = this.#dualEngine?.status();
    return {
      ...(this.#identity ? { identity: this.#identity.status() } : {}),
      ...(this.#registration ? { registration: this.#registration } : {}),
      ...(this.#health ? { health: this.#health.status() } : {}),
      stream: this.#stream.status(),
      ...(workloads ? { workloads } : {}),
    };
  }

  /** The resources that istiod sent. */
  received(): Record<string, unknown> {
    return this.#engine.describe();
  }

  /** Frontends within these blocks get a note that no connection reaches them. */
  exclude(excludes: Config["excludes"]): void {
    this.#engine.exclude(excludes);
  }

  /** Starts the health checks and the stream as soon as the machine has an address. */
  start(): void {
    this.#health?.start();
    void this.#connect();
  }

  stop(): void {
    this.#addressWatch?.stop();
    this.#reachWatch?.stop();
    clearTimeout(this.#awayTimer);
    this.#stopped = true;
    this.#health?.stop();
    this.#identity?.stop();
    this.#stream.stop();
    this.#engine.close();
  }

  /** Gets the certificate first. Without one the stream starts with the token; istiod's refusal then gives the reason. */
  async #connect(): Promise<void> {
    const { log } = this.#options;
    this.#watchAddresses();
    if (this.#nameless) {
      log.warn(
        "This machine has no address that peers could reach, so it is not registered with istiod yet. " +
          "It is as soon as there is one; --ip names one",
      );
      return;
    }
    try {
      await this.#identity?.begin();
    } catch (error) {
      log.error(`A fault of kmesh, no certificate is asked for: ${reasonOf(error)}`);
    }
    if (this.#stopped) return;
    this.#withdrawWithoutCertificate();
    this.#watchReach();
    this.#stream.start();
  }

  /** Peers must not be sent to a tunnel that has no certificate. */
  #withdrawWithoutCertificate(): void {
    const { hbone, mtls } = this.#use.reach;
    if ((!hbone && !mtls) || this.#certified) return;
    this.#use = { ...this.#use, reach: UNREACHED };
    const node = this.#node();
    this.#registration = registrationOf(node);
    this.#stream.stop();
    this.#stream = this.#openStream(node);
  }

  /** Whether there is a certificate that the tunnel can use. */
  get #certified(): boolean {
    return this.#identity?.status().certificate?.valid === true;
  }

  /** A tunnel that came or went makes the machine another node, as other addresses do. */
  #watchReach(): void {
    const { config, log, moved } = this.#options;
    const told = this.#use;
    const read = () => tunnelUse(config, this.#certified);
    this.#reachWatch = new ReachWatch(told, read, (now) => {
      log.info(
        `The tunnel now carries ${formatUse(now)}: the agent begins anew to tell istiod, what the kernel holds stays`,
      );
      const isLost = (told.reach.hbone && !now.reach.hbone) || (told.reach.mtls && !now.reach.mtls);
      // Plaintext reaches no strict port, so an absence costs nothing there.
      if (this.#registration?.group !== undefined && (isLost || this.#strict)) this.#stayAway();
      else moved();
    });
  }

  /** istiod removes the entry of a machine that is away for longer than its grace period, and then makes another one. */
  #stayAway(): void {
    const { log, moved } = this.#options;
    log.warn(
      "The entry of this machine tells peers to send something that it does not take, and istiod changes no labels of an " +
        `entry that exists: kmesh leaves istiod for ${STAY_AWAY / 1000} s, so that istiod makes another one`,
    );
    this.#reachWatch?.stop();
    this.#stream.stop();
    this.#awayTimer = setTimeout(moved, STAY_AWAY);
  }

  /** Corrects an entry that is older than the tunnel, unless that was tried within the last hour. */
  #correct(peers: Reflected): void {
    const { group, reach } = this.#registration ?? {};
    if (group === undefined || this.#awayTimer || this.#stopped) return;
    const { unserved, unused } = differencesOf(peers, reach);
    const isWrong = unserved.length > 0 || (unused.includes("mTLS") && this.#strict);
    const { runDir } = this.#options.config;
    if (!isWrong || wasAwayOfLate(runDir)) return;
    // An absence because the tunnel itself came or went says nothing of another agent.
    noteAbsence(runDir);
    this.#stayAway();
  }

  /** Whether the machine has no address yet to register. */
  get #nameless(): boolean {
    const { config, addresses } = this.#options;
    return addresses.length === 0 && config.serviceIp === undefined;
  }

  /** When the addresses change, the machine is another node. The agent restarts within this process; connections continue. */
  #watchAddresses(): void {
    const { config, addresses: told, log, moved } = this.#options;
    if (config.ips.length > 0) return;
    this.#addressWatch = new AddressWatch(told, machineAddresses, (addresses) => {
      log.info(
        `This machine's addresses are ${addresses.join(", ")} now, not ${told.join(", ") || "none"}: ` +
          "the agent restarts to register them; the kernel's state stays",
      );
      moved();
    });
  }

  /** A machine with a token gets a certificate. */
  #openIdentity(): WorkloadIdentity | undefined {
    const { config, reporter, changed } = this.#options;
    if (config.plaintext || config.ca === undefined || config.token === undefined) return undefined;
    const identity = new WorkloadIdentity({
      istiod: formatTarget(config.caServer ?? config.istiod),
      hosts: config.hosts,
      id: {
        trustDomain: config.trustDomain,
        namespace: config.namespace,
        serviceAccount: config.serviceAccount,
      },
      ca: config.ca,
      token: config.token,
      clusterId: config.clusterId,
      validity: config.certificateLife,
      store: identityStore(config.stateDir),
      on: (event) => {
        reporter.onIdentity(event);
        changed();
      },
      renewed: () => this.#stream.renew(),
    });
    if (identity.status().certificate === undefined) requireReadable("--token", config.token);
    return identity;
  }

  /** The compiler of the mode. */
  #openEngine(node: Identity): Engine {
    const { config, workloads } = this.#options;
    const publish = (mesh: Mesh, changes: Changes) => {
      const { inbound } = mesh;
      this.#strict = inbound?.ports.some((port) => mtlsOf(inbound, port) === "strict") ?? false;
      this.#options.publish(mesh, changes);
    };
    const { allowPlaintext, excludes: excluded, namespace, trustDomain, trustDomainAliases } = config;
    const tunnel = this.#use.outbound;
    if (config.mode === "kernel-native")
      return new KernelNative({ allowPlaintext, tunnel, excluded, workloads, namespace, publish });
    const { region = "", zone = "", subzone = "" } = node.locality ?? {};
    const entry = this.#registration?.entry;
    return new DualEngine({
      ...{ allowPlaintext, excluded, workloads, namespace },
      trustDomains: [trustDomain, ...trustDomainAliases],
      here: { network: config.network, region, zone, subzone, node: "", cluster: config.clusterId },
      tunnel,
      self: {
        ...{ addresses: node.ips, labelled: Object.keys(config.labels).length > 0 },
        ...(entry === undefined ? {} : { entry }),
      },
      publish: (mesh, changes) => {
        publish(mesh, changes);
        this.#seen(this.#dualEngine?.peers);
      },
      lacking: () => this.#options.reporter.onAmbientLacking(),
    });
  }

  get #dualEngine(): DualEngine | undefined {
    return this.#engine instanceof DualEngine ? this.#engine : undefined;
  }

  /** The sink of the stream: the compiler. For a registered machine it also looks for the machine's own endpoints. */
  #sinkFor(node: Identity): ResourceSink {
    const [address] = node.ips;
    // The workload API has the protocol of each workload.
    if (!this.#registration || address === undefined || this.#dualEngine) return this.#engine;
    return new Reflection(this.#engine, address, (peers) => this.#seen(peers));
  }

  /** How peers reach this machine. */
  #seen(peers: Reflected | undefined): void {
    if (!this.#registration || isDeepStrictEqual(peers, this.#registration.peers)) return;
    const { peers: _, ...registration } = this.#registration;
    this.#registration = { ...registration, ...(peers ? { peers } : {}) };
    if (peers) this.#options.reporter.onPeers(peers, this.#registration);
    this.#options.changed();
    if (peers) this.#correct(peers);
  }

  /** istiod accepts health only for a machine with a WorkloadEntry. `kmesh status` always shows it. */
  #openHealth(): HealthWatch | undefined {
    const { config, addresses, reporter, changed } = this.#options;
    if (config.readinessProbe === undefined) return undefined;
    return new HealthWatch({
      probe: parseProbe(config.readinessProbe),
      address: config.probeLocalhost ? "localhost" : (addresses[0] ?? "localhost"),
      on: (verdict) => {
        reporter.onHealth(verdict);
        if (this.#registration) this.#stream.report(verdict);
        changed();
      },
    });
  }
}

function securityOf(config: Config, identity: WorkloadIdentity | undefined): Security {
  if (config.plaintext || config.ca === undefined) return { kind: "plaintext" };
  return {
    kind: "tls",
    ca: config.ca,
    ...(config.token === undefined ? {} : { token: config.token }),
    ...(identity ? { identity } : {}),
  };
}
