/** The agent's log lines, each logged once, and the notes of its status. */
import type { AgentStatus, MeshStatus, RegistrationStatus, SnapshotStatus } from "../admin/status.ts";
import type { Config } from "../config/config.ts";
import type { Log } from "../config/log.ts";
import type { Verdict } from "../health/watch.ts";
import type { IdentityEvent } from "../istiod/identity/identity.ts";
import { time } from "../istiod/identity/token.ts";
import { differencesOf } from "../istiod/registration.ts";
import type { StreamEvent } from "../istiod/stream/status.ts";
import type { Reflected } from "../kernel-native/reflection.ts";
import { usesTunnel } from "../machine/tunnel/listener.ts";
import { type Mesh, NOTE_TITLES, type NoteKind } from "../mesh/model.ts";

const AMBIENT =
  "istiod sent no service and no workload: it needs PILOT_ENABLE_AMBIENT=true for --mode dual-engine. What the kernel holds stays";

export class Reporter {
  readonly #log: Log;
  readonly #said = new Set<string>();
  #counts = "";
  #lastEnd = "";
  #lastRefusal = "";

  constructor(log: Log) {
    this.#log = log;
  }

  /** `found`: tables of this version, live tables of another version, or nothing. */
  started(found: "own" | "foreign" | "nothing", config: Config): void {
    const tables = {
      own: "adopted an earlier agent's tables, traffic continues",
      foreign: "another version's tables are live until these are filled, traffic continues",
      nothing: "tables are empty, nothing is governed yet",
    }[found];
    this.#log.info(`kmesh runs (pid ${process.pid}, ${config.mode}): ${tables}`);
    if (config.shadow) this.#log.warn("Shadow mode: decisions are counted, no connection is changed");
    if (usesTunnel(config)) this.#log.info("What needs mutual TLS goes through kmesh tunnel");
    if (config.allowPlaintext)
      this.#log.warn("--allow-plaintext: connections go out in plaintext where the mesh demands TLS");
  }

  heard(event: StreamEvent): void {
    const [level, line] = tell(event);
    if (event.kind === "connected") this.#lastEnd = "";
    // An absent istiod is logged once, not at each attempt. The certificate's error is logged elsewhere.
    const again = event.kind === "disconnected" && [this.#lastEnd, this.#lastRefusal].includes(event.reason);
    if (event.kind === "disconnected") this.#lastEnd = event.reason;
    this.#log[again ? "debug" : level](line);
  }

  onIdentity(event: IdentityEvent): void {
    const again = event.kind === "failed" && event.reason === this.#lastRefusal;
    if (event.kind !== "remark") this.#lastRefusal = event.kind === "failed" ? event.reason : "";
    const [level, line] = logIdentity(event);
    this.#log[again ? "debug" : level](line);
  }

  onHealth({ healthy, message }: Verdict): void {
    if (healthy) this.#log.info("The application is healthy");
    else this.#log.warn(`The application is not healthy: ${message}`);
  }

  /** Logged once, because each push repeats it. */
  onAmbientLacking(): void {
    if (this.#said.has(AMBIENT)) return;
    this.#said.add(AMBIENT);
    this.#log.error(AMBIENT);
  }

  onPeers(peers: Reflected, registration: RegistrationStatus | undefined): void {
    const { unserved } = differencesOf(peers, registration?.reach);
    if (unserved.length === 0) return;
    const services = [...new Set([...(peers.mtls ?? []), ...peers.hbone])].sort();
    this.#log.warn(
      `Peers are told to send ${unserved.join(" and ")} to this machine (${list(services)}), and no tunnel takes it: ` +
        (registration?.needs[0] ?? "kmesh status"),
    );
  }

  /** The last good snapshot is live. */
  restored(mesh: Mesh, { writtenAt, writes, milliseconds }: SnapshotStatus): void {
    this.#log.info(
      `${mesh.services.size} services are live from the snapshot of ${writtenAt}, until istiod answers; ` +
        `${writes} map writes, ${milliseconds.toFixed(1)} ms`,
    );
  }

  /** A push is live. */
  applied(mesh: Mesh, report: { first: boolean; writes: number; milliseconds: number }): void {
    const line = `${mesh.services.size} services are live, ${report.writes} map writes, ${report.milliseconds.toFixed(1)} ms`;
    if (report.first) this.#log.info(line);
    else this.#log.debug(line);
    for (const note of mesh.notes) {
      if (this.#said.has(note.text)) continue;
      this.#said.add(note.text);
      this.#log.warn(note.text);
    }
    this.#countNotes(mesh);
  }

  /** One line for all services, when the numbers change. */
  #countNotes(mesh: Mesh): void {
    const counts = new Map<NoteKind, number>();
    for (const { notes } of mesh.services.values()) {
      for (const kind of new Set(notes.map((note) => note.kind)))
        counts.set(kind, (counts.get(kind) ?? 0) + 1);
    }
    const parts = NOTE_TITLES.filter(({ kind }) => counts.has(kind)).map(
      ({ kind, title }) => `${counts.get(kind)} ${title}`,
    );
    const line = parts.join(", ");
    if (line !== this.#counts && line !== "")
      this.#log.warn(`Services with remarks: ${line}. kmesh status lists them`);
    this.#counts = line;
  }
}

/** Formats an event of istiod's stream as a log line with its level. */
export function tell(event: StreamEvent): ["error" | "warn" | "info" | "debug", string] {
  switch (event.kind) {
    case "connecting":
      return ["debug", `Connecting to istiod at ${event.target}`];
    case "connected":
      return ["info", `Connected to istiod at ${event.target}`];
    case "disconnected":
      // istiod ends every stream after half an hour, which is normal.
      return [event.held > 0 ? "info" : "warn", `${event.reason}. Traffic continues; trying again`];
    case "renewed":
      return ["debug", `A new connection to istiod at ${event.target} took over`];
    case "not-renewed":
      return ["warn", `No new connection to istiod, the old one stays in use: ${event.reason}`];
    case "health-not-taken":
      return ["warn", `The application's health is not reported: ${event.reason}`];
    case "rejected":
      return [
        "warn",
        `Refused istiod's ${event.type} ${event.resource}: ${event.reason}. The one before stays`,
      ];
    case "ignored":
      return ["warn", `Ignored what istiod sent: ${event.reason}`];
    case "overdue":
      return ["warn", `istiod does not answer for ${event.type} ${list(event.names)}: going on without`];
    case "committed":
      return [
        "debug",
        `Push ${event.version || "without a version"} was complete after ${Math.round(event.took)} ms`,
      ];
    case "failed":
      return ["error", `A bug in kmesh; the tables are unchanged: ${event.reason}`];
  }
}

/** Formats an event of the machine's certificate as a log line with its level. */
export function logIdentity(event: IdentityEvent): ["error" | "warn" | "info", string] {
  switch (event.kind) {
    case "reused":
      return [
        "info",
        `This machine is ${event.id}, by its stored certificate, until ${time(event.notAfter)}`,
      ];
    case "obtained":
      return [
        "info",
        `This machine is ${event.id}, by a new certificate (obtained with the ${event.proof}), until ${time(event.notAfter)}; the next one is due at ${time(event.renewal)}`,
      ];
    case "failed":
      return [
        event.expired ? "error" : "warn",
        `No new certificate: ${event.reason}. Traffic continues; trying again`,
      ];
    case "remark":
      return ["warn", capital(event.reason)];
  }
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function list(names: readonly string[]): string {
  return names.length <= 3
    ? names.join(", ")
    : `${names.slice(0, 3).join(", ")} and ${names.length - 3} more`;
}

/** The agent in one line, for a service manager. */
export function formatOneLine({ adopted, stream, tables, mesh, shadow }: AgentStatus): string {
  const governs = tables.applies > 0 || adopted;
  const numbers = `${mesh.services} services, ${mesh.endpoints} endpoints`;
  const link = stream.connected
    ? `${tables.applies > 0 ? "in sync with" : "connected to"} istiod at ${stream.target}`
    : `istiod at ${stream.target} is not connected${stream.lastError ? ` (${stream.lastError.text})` : ""}`;
  const state = governs
    ? `${mesh.services === 0 && !mesh.current ? "Governing as the agent before did" : `Governing ${numbers}`}; ${link}`
    : `Nothing is governed yet; ${stream.connected ? "istiod's first push is coming" : link}`;
  const error = tables.lastError ? `; not all is live: ${tables.lastError.text}` : "";
  return `${shadow ? "Shadow mode. " : ""}${state}${error}`;
}

/** The numbers of the mesh, and its notes. */
export function meshStatusOf(mesh: Mesh): MeshStatus {
  let endpoints = 0;
  for (const { localities } of mesh.clusters.values()) {
    for (const locality of localities) endpoints += locality.endpoints.length;
  }
  return {
    current: true,
    services: mesh.services.size,
    frontends: mesh.frontends.size,
    clusters: mesh.clusters.size,
    endpoints,
    notes: mesh.notes,
    serviceNotes: [...mesh.services.values()]
      .filter(({ notes }) => notes.length > 0)
      .map(({ name, notes }) => ({ service: name, notes })),
  };
}

/** Before the first mesh: the previous agent's notes, because its tables are still live. */
export function meshStatusBefore(previous: MeshStatus | undefined): MeshStatus {
  const nothing = { services: 0, frontends: 0, clusters: 0, endpoints: 0, notes: [], serviceNotes: [] };
  return { ...(previous ?? nothing), current: false };
}
