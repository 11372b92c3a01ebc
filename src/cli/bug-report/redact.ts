/** Removes secrets from a bug report. When in doubt, it removes too much rather than too little. */
import { parse, stringify } from "yaml";
import { reasonOf } from "../../errors/reason.ts";

const LEFT_OUT = "[left out]";

/** Names of keys, headers and variables whose values are secrets. */
const SECRET =
  /pass(w(or)?d|phrase)?$|passwd|secret|token|credential|api[-_]?key|private[-_]?key|access[-_]?key|authorization|cookie|session|signature/i;

/** Settings whose names look secret but whose values are paths or durations. */
const PATHS = /^\/[^\s]*$/;

/** Redacts text of any kind: a log, a table, a command line. */
export function redactText(text: string): string {
  return (
    text
      .replace(
        /-----BEGIN ([A-Z ]*PRIVATE KEY)-----[\s\S]*?(-----END \1-----|$)/g,
        `[private key ${LEFT_OUT}]`,
      )
      // A JSON web token: two or three parts of base64url, the first the JSON of a header.
      .replace(/\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}(\.[A-Za-z0-9_-]*)?/g, `[token ${LEFT_OUT}]`)
      .replace(/\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{6,}/gi, `$1 ${LEFT_OUT}`)
      .replace(/([a-z][a-z0-9+.-]*:\/\/)[^\s/@:"']+:[^\s/@"']+@/gi, `$1${LEFT_OUT}@`)
      // name=value, name: value, "name": "value", --name value.
      .replace(
        /(["']?)([A-Za-z0-9_.-]*(?:password|passwd|passphrase|secret|token|credential|api[-_]?key|private[-_]?key|access[-_]?key|authorization|cookie)[A-Za-z0-9_-]*)\1(\s*[=:]\s*|\s+(?=["']?[^\s"']{16,}))("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}\]]+)/gi,
        (whole, quote: string, name: string, between: string, value: string) =>
          PATHS.test(value.replace(/^["']|["']$/g, "")) || value.startsWith("[")
            ? whole
            : `${quote}${name}${quote}${between}${/^["']/.test(value) ? `${value[0]}${LEFT_OUT}${value[0]}` : LEFT_OUT}`,
      )
  );
}

/** Redacts JSON by its structure. Other text is redacted as plain text. */
export function redactJson(text: string): string {
  try {
    return JSON.stringify(redactValue(JSON.parse(text)), undefined, 2);
  } catch {
    return redactText(text);
  }
}

/**
 * Redacts YAML by its structure and removes comments. Of a text that is not valid YAML only the parser's message and the
 * keys at the beginnings of lines are left: without structure nobody can tell which values are secrets.
 */
export function redactYaml(text: string): string {
  try {
    const value: unknown = parse(text);
    return typeof value === "string" ? `# no settings, ${LEFT_OUT}\n` : stringify(redactValue(value));
  } catch (error) {
    const [reason = ""] = reasonOf(error).split("\n");
    const keys = text.match(/^ *(- )?[a-z][a-z-]*(?=:)/gm) ?? [];
    return [`# not valid YAML: ${reason}`, ...keys.map((key) => `${key}: ${LEFT_OUT}`), ""].join("\n");
  }
}

/** Redacts plain data: values under secret names, values of headers, and arguments of commands. */
export function redactValue(value: unknown, name = ""): unknown {
  if (typeof value === "string") return isSecret(name, value) ? LEFT_OUT : redactText(value);
  if (Array.isArray(value)) {
    if (name === "command" || name === "args")
      return value.map((each, i) => (i === 0 && name === "command" ? each : LEFT_OUT));
    return value.map((each) => redactValue(each, name));
  }
  if (typeof value !== "object" || value === null)
    return SECRET.test(name) && typeof value === "number" ? LEFT_OUT : value;
  const header = headerName(value as Record<string, unknown>);
  return Object.fromEntries(
    Object.entries(value).map(([key, each]) => {
      if (
        /^(value|raw_value|rawValue)$/.test(key) &&
        header !== undefined &&
        (SECRET.test(header) || /header/i.test(name))
      )
        return [key, LEFT_OUT];
      return [key, redactValue(each, key)];
    }),
  );
}

/** The name of a header written as { name, value } or { key, value }. */
function headerName({ name, key }: Record<string, unknown>): string | undefined {
  return typeof name === "string" ? name : typeof key === "string" ? key : undefined;
}

function isSecret(name: string, value: string): boolean {
  return SECRET.test(name) && value !== "" && !PATHS.test(value);
}
