/** Parses single values. Each function returns the value of the text, or throws Invalid. */

import { accessSync, constants } from "node:fs";
import { isAbsolute, resolve } from "node:path";
import { NoUnit, unitName } from "../datapath/tables/unit.ts";
import { ActionableError } from "../errors/actionable-error.ts";
import { faultOfFile, isMissing } from "../errors/reason.ts";
import { requireRegularFile } from "../files/read-file.ts";
import { isNamespace, isObjectName, isTrustDomain } from "../istiod/join/object-name.ts";
import { faultOfProbe } from "../istiod/join/readiness-probe.ts";
import { DECIDED_METADATA, type Json } from "../istiod/node.ts";
import { isDialledList, parseDialled } from "../istiod/target.ts";
import { canonicalAddress } from "../mesh/address.ts";
import { jsonOf, readYaml } from "./yaml.ts";

/** The fields of `ports` and `readiness-probe` that are always texts. */
export const TEXT_FIELDS: ReadonlySet<string> = new Set([
  "name",
  "protocol",
  "path",
  "host",
  "scheme",
  "value",
  "service",
  "command",
]);

/** The text is not a value of the setting; `next` shows a valid one. Values turns it into a ConfigError. */
export class Invalid extends ActionableError {}

/** The value names a missing file. */
export class MissingFile extends Invalid {
  readonly path: string;
  constructor(reason: string, next: string, path: string) {
    super(reason, next);
    this.path = path;
  }
}

/** HOST, HOST:PORT, IPv4, [IPv6]:PORT or a bare IPv6 address. */
export function parseIstiod(text: string, port: number): { host: string; port: number } {
  const example = "Write HOST:PORT, for example istiod.istio-system.svc:15012.";
  const bare = canonicalAddress(text);
  if (bare !== undefined) return { host: bare, port };
  const found = /^(\[[^\]]+\]|[^:[\]/\s]+)(?::(\d+))?$/.exec(text);
  if (!found?.[1]) throw new Invalid(`"${text}" is not HOST:PORT`, example);
  const host = found[1].startsWith("[") ? canonicalAddress(found[1]) : found[1];
  if (host === undefined) throw new Invalid(`"${found[1]}" is not an IPv6 address`, example);
  if (/^\d+$/.test(host)) throw new Invalid(`"${text}" is a port without a host`, example);
  if (!isHost(host)) throw new Invalid(`"${host}" is neither a host name nor an address`, example);
  return { host, port: found[2] === undefined ? port : parsePort(found[2], example) };
}

/** A DNS name (RFC 1123, with underscores) or a canonical address. Four numbers that are not an address are rejected. */
function isHost(text: string): boolean {
  if (canonicalAddress(text) === text) return true;
  const label = /^[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?$/;
  const labels = text.replace(/\.$/, "").split(".");
  return text.length <= 254 && labels.every((each) => label.test(each)) && !/^\d+$/.test(labels.at(-1) ?? "");
}

export function parsePort(digits: string, example: string): number {
  const port = Number(digits);
  if (!/^\d+$/.test(digits) || port < 1 || port > 65535)
    throw new Invalid(`"${digits}" is not a port`, example);
  return port;
}

export function parseIp(text: string): string {
  const address = canonicalAddress(text);
  if (address === undefined)
    throw new Invalid(`"${text}" is not an IP address`, "Write an IPv4 or IPv6 address.");
  return address;
}

/** The destination for a name: addresses, or the DNS name of a load balancer. */
export function parseAddresses(name: string, value: Json): string[] {
  const next = `Write ${name}: ADDRESS, a list of addresses, or the DNS name of a gateway.`;
  const list = [
    ...new Set(
      (Array.isArray(value) ? value : [value]).map((each) => {
        const text = textOf(each, name);
        const dialled = parseDialled(text);
        if (dialled === undefined)
          throw new Invalid(`"${text}" is neither an IP address nor a full DNS name`, next);
        if (dialled === name.toLowerCase()) throw new Invalid(`${name} is mapped to itself`, next);
        return dialled;
      }),
    ),
  ];
  if (list.length === 0) throw new Invalid(`${name} has no address`, next);
  if (!isDialledList(list)) {
    throw new Invalid(`${name} has a DNS name among others (${list.join(", ")})`, next);
  }
  return list;
}

export function parseLocality(text: string): { region: string; zone: string; subzone: string } {
  const parts = text.split("/");
  if (parts.length > 3 || parts[0] === "") {
    throw new Invalid(`"${text}" is not a locality`, "Write REGION, REGION/ZONE or REGION/ZONE/SUBZONE.");
  }
  const [region = "", zone = "", subzone = ""] = parts;
  return { region, zone, subzone };
}

export function parseName(text: string): string {
  if (isNamespace(text)) return text;
  throw new Invalid(
    `"${text}" is not a Kubernetes name`,
    "Use small letters, digits and dashes, at most 63.",
  );
}

/** In seconds. istiod backdates certificates by two minutes, so a shorter lifetime would be renewed permanently. */
export function parseLife(text: string): number {
  const [, digits, unit = ""] = /^(\d{1,9})([smh])$/.exec(text) ?? [];
  const seconds = Number(digits) * ({ s: 1, m: 60, h: 3600 }[unit] ?? 0);
  const example = "Write a whole number and s, m or h, for example 24h.";
  if (digits === undefined) throw new Invalid(`"${text}" is not a length of time`, example);
  if (seconds < 120) throw new Invalid(`${text} is too short for a certificate: 2m is the least`, example);
  return seconds;
}

export function parseNodeName(text: string): string {
  if (/^[-A-Za-z0-9._]{1,253}$/.test(text)) return text;
  throw new Invalid(
    `"${text}" can't be the name of a machine`,
    "Use letters, digits, dashes, dots and underscores.",
  );
}

/** The name of a Kubernetes object. */
export function parseObjectName(text: string): string {
  if (isObjectName(text)) return text;
  throw new Invalid(
    `"${text}" is not a Kubernetes name`,
    "Use small letters, digits, dashes and dots, at most 253.",
  );
}

/** A group's name, as groupadd(8) accepts it, or its number. */
export function parseGroup(text: string): string {
  if (/^([a-z_][a-z0-9_-]{0,31}\$?|\d{1,9})$/i.test(text)) return text;
  throw new Invalid(`"${text}" is not the name of a group`, "Name a group of this machine, for example adm.");
}

export function parsePorts(value: Json): readonly Json[] {
  if (Array.isArray(value)) return value;
  throw new Invalid(
    "it is not a list",
    'Write a list, for example [{"name": "http", "containerPort": 8080}].',
  );
}

export function parseProbe(value: Json): { readonly [key: string]: Json } {
  const fault = faultOfProbe(value);
  if (fault === undefined && isObject(value)) return value;
  throw new Invalid(
    `it ${fault}`,
    'Write a probe, for example {"httpGet": {"path": "/ready", "port": 8080}}.',
  );
}

/** istiod requires texts as single values: a bare boolean makes it close the stream. */
export function parseMetadata(key: string, value: Json): Json {
  if (DECIDED_METADATA.has(key))
    throw new Invalid(`${key} has a setting of its own, or is decided by kmesh`, "Take it out.");
  return typeof value === "object" ? value : String(value);
}

export function textOf(value: Json, key: string): string {
  if (typeof value === "string") return value;
  throw new Invalid(`${key} is not a text`, `Write ${key}: "..." with quotes.`);
}

/** JSON. Numbers are read as in the file. */
export function parseJson(text: string): Json {
  try {
    JSON.parse(text);
    return jsonOf(readYaml(text), TEXT_FIELDS);
  } catch {
    throw new Invalid("it is not JSON", "Quote keys and texts, and the whole of it for the shell.");
  }
}

export function isObject(value: unknown): value is { readonly [key: string]: Json } {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function parseTrustDomain(text: string): string {
  if (isTrustDomain(text)) return text;
  throw new Invalid(
    `"${text}" is not a trust domain`,
    "Use small letters, digits, dots, dashes and underscores, for example cluster.local.",
  );
}

export function parseDirectory(text: string): string {
  if (text === "") throw new Invalid("the folder's name is empty", "Write a path.");
  return resolve(text);
}

/** The end of DNS names, in lower case: `corp.example`, also written `.corp.example` or `*.corp.example`. */
export function parseSuffix(text: string): string {
  const suffix = text
    .toLowerCase()
    .replace(/^\*?\./, "")
    .replace(/\.$/, "");
  if (/^(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$/.test(suffix)) return suffix;
  throw new Invalid(`"${text}" is not the end of a DNS name`, "Write for example corp.example.");
}

export function parseUnit(text: string): string {
  try {
    return unitName(text);
  } catch (error) {
    if (!(error instanceof NoUnit)) throw error;
    throw new Invalid(error.message, "Write a unit as systemctl shows it, for example nginx.service.");
  }
}

export function parseCgroup(text: string): string {
  if (isAbsolute(text)) return text;
  throw new Invalid(
    `"${text}" does not start with /`,
    "Write a path, for example /system.slice/nginx.service.",
  );
}

export function readable(path: string): string {
  try {
    accessSync(path, constants.R_OK);
    requireRegularFile(path);
    return resolve(path);
  } catch (error) {
    const reason = `${path} ${faultOfFile(error)}`;
    if (isMissing(error)) throw new MissingFile(reason, "Check the path.", path);
    throw new Invalid(reason, "Check the path and the file's mode.");
  }
}

export function plain(text: string): string {
  return text;
}
