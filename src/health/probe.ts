/** The probe of a WorkloadGroup (`spec.probe`) or of mesh.yaml (readinessProbe). */

/** The check to run. Without `host` it goes to the machine's own address. */
export type Question =
  | {
      kind: "http";
      scheme: "http" | "https";
      host?: string;
      port: number;
      path: string;
      /** In the given order; names may repeat. */
      headers: readonly { name: string; value: string }[];
    }
  | { kind: "tcp"; host?: string; port: number }
  | { kind: "grpc"; port: number; service: string }
  | { kind: "exec"; command: readonly string[] };

/** Times in milliseconds. */
export interface Probe {
  question: Question;
  initialDelay: number;
  timeout: number;
  period: number;
  /** Consecutive successes that make it healthy, and consecutive failures that make it unhealthy. */
  successThreshold: number;
  failureThreshold: number;
}

/** The probe can't be used; the message begins with the field: `httpGet.port is missing`. */
export class MalformedProbe extends Error {
  constructor(message: string) {
    super(message);
    this.name = "MalformedProbe";
  }
}

const KINDS = ["httpGet", "tcpSocket", "grpc", "exec"] as const;
const COMMON = [
  "initialDelaySeconds",
  "timeoutSeconds",
  "periodSeconds",
  "successThreshold",
  "failureThreshold",
] as const;

/** Parses a probe with Istio's defaults. Throws MalformedProbe for the first fault. */
export function parseProbe(json: unknown): Probe {
  const spec = new Fields(json, "");
  spec.only([...KINDS, ...COMMON]);
  const given = KINDS.filter((kind) => spec.has(kind));
  const [kind] = given;
  if (kind === undefined || given.length > 1)
    throw new MalformedProbe(
      `it names ${kind === undefined ? "none" : given.join(" and ")} of ${KINDS.join(", ")}, and must name one`,
    );
  return {
    question: questionOf(kind, spec.inner(kind)),
    initialDelay: spec.number("initialDelaySeconds", 0, 0) * 1000,
    timeout: spec.number("timeoutSeconds", 1, 1) * 1000,
    period: spec.number("periodSeconds", 10, 1) * 1000,
    successThreshold: spec.number("successThreshold", 1, 1),
    failureThreshold: spec.number("failureThreshold", 1, 1),
  };
}

/** Formats the check: `GET http://10.0.0.5:8080/ready`. `address` replaces a missing host. */
export function formatQuestion(question: Question, address: string): string {
  switch (question.kind) {
    case "http":
      return `GET ${question.scheme}://${place(question.host ?? address, question.port)}${question.path}`;
    case "tcp":
      return `TCP connect to ${place(question.host ?? address, question.port)}`;
    case "grpc":
      return `gRPC health of ${question.service === "" ? "the server" : question.service} at ${place(address, question.port)}`;
    case "exec":
      return `exec ${question.command.join(" ")}`;
  }
}

function place(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

function questionOf(kind: (typeof KINDS)[number], fields: Fields): Question {
  switch (kind) {
    case "httpGet": {
      fields.only(["path", "port", "host", "scheme", "httpHeaders"]);
      const scheme = (fields.text("scheme") || "http").toLowerCase();
      if (scheme !== "http" && scheme !== "https") fields.wrong("scheme", "is neither HTTP nor HTTPS");
      const path = fields.text("path") || "/";
      return {
        kind: "http",
        scheme: scheme === "https" ? "https" : "http",
        ...hostOf(fields),
        port: fields.port(),
        path: path.startsWith("/") ? path : `/${path}`,
        headers: headersOf(fields),
      };
    }
    case "tcpSocket":
      fields.only(["host", "port"]);
      return { kind: "tcp", ...hostOf(fields), port: fields.port() };
    case "grpc":
      fields.only(["port", "service"]);
      return { kind: "grpc", port: fields.port(), service: fields.text("service") };
    case "exec": {
      fields.only(["command"]);
      const command = fields.list("command").map((word) => {
        if (typeof word !== "string") fields.wrong("command", "is not a list of texts");
        return String(word);
      });
      if (command.length === 0 || command[0] === "") fields.wrong("command", "is empty");
      return { kind: "exec", command };
    }
  }
}

function hostOf(fields: Fields): { host?: string } {
  const host = fields.text("host").replace(/^\[(.*)\]$/, "$1");
  if (/\s|\//.test(host)) fields.wrong("host", "is no host name or address");
  return host === "" ? {} : { host };
}

function headersOf(fields: Fields): { name: string; value: string }[] {
  return fields.list("httpHeaders").map((each, i) => {
    const header = new Fields(each, `httpGet.httpHeaders[${i}].`);
    header.only(["name", "value"]);
    const name = header.text("name");
    if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name)) header.wrong("name", "is not the name of a header");
    const value = header.text("value");
    if (/[^\t\x20-\x7e\x80-\xff]/.test(value)) header.wrong("value", "can't be a header's value");
    return { name, value };
  });
}

/** The fields of one object. Errors name the full path of a field. */
class Fields {
  readonly #values: Record<string, unknown>;
  readonly #prefix: string;

  constructor(json: unknown, prefix: string) {
    if (typeof json !== "object" || json === null || Array.isArray(json))
      throw new MalformedProbe(`${prefix.replace(/\.$/, "") || "it"} holds no fields`);
    this.#values = { ...json };
    this.#prefix = prefix;
  }

  wrong(field: string, reason: string): never {
    throw new MalformedProbe(`${this.#prefix}${field} ${reason}`);
  }

  only(known: readonly string[]): void {
    for (const field of Object.keys(this.#values))
      if (!known.includes(field)) this.wrong(field, `is not a field of it (those are ${known.join(", ")})`);
  }

  has(field: string): boolean {
    return this.#values[field] !== undefined && this.#values[field] !== null;
  }

  inner(field: string): Fields {
    return new Fields(this.#values[field], `${this.#prefix}${field}.`);
  }

  text(field: string): string {
    const value = this.has(field) ? this.#values[field] : "";
    if (typeof value !== "string") this.wrong(field, "is not a text");
    return value;
  }

  list(field: string): unknown[] {
    const value = this.has(field) ? this.#values[field] : [];
    if (!Array.isArray(value)) this.wrong(field, "is not a list");
    return value;
  }

  /** Zero means "not given" as in protobuf, except for fields that allow it. */
  number(field: string, fallback: number, least: number): number {
    const value = this.has(field) ? this.#values[field] : 0;
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > 2 ** 31 - 1)
      this.wrong(field, "is not a whole number");
    return value < least ? fallback : value;
  }

  port(): number {
    if (!this.has("port")) this.wrong("port", "is missing");
    const port = this.number("port", 0, 1);
    if (port < 1 || port > 65_535) this.wrong("port", "is not a port");
    return port;
  }
}
