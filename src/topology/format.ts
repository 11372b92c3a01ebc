/** Numbers and names as the page shows them, with their units. */
import type { Carried, Node } from "../telemetry/model.ts";

/** `12 /s`, `0.25 /s`; per minute or hour where that is clearer. */
export function formatRate(perSecond: number): string {
  if (perSecond === 0) return "0 /s";
  if (perSecond >= 0.1) return `${significant(perSecond)} /s`;
  if (perSecond * 60 >= 0.1) return `${significant(perSecond * 60)} /min`;
  return `${significant(perSecond * 3600)} /h`;
}

/** Decimal: 1 kB is 1,000 bytes. */
export function formatBytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let value = count;
  let at = 0;
  while (value >= 999.5 && at < units.length - 1) {
    value /= 1000;
    at++;
  }
  return `${at === 0 ? Math.round(value) : significant(value)} ${units[at]}`;
}

/** Microseconds as us, ms or s. */
export function formatMicroseconds(us: number): string {
  if (us < 1000) return `${significant(us)} µs`;
  if (us < 1_000_000) return `${significant(us / 1000)} ms`;
  return `${significant(us / 1_000_000)} s`;
}

/** Seconds as ms, s, min, h or d. */
export function formatSeconds(seconds: number): string {
  if (seconds < 1) return `${significant(seconds * 1000)} ms`;
  if (seconds < 120) return `${significant(seconds)} s`;
  if (seconds < 7200) return `${significant(seconds / 60)} min`;
  if (seconds < 172_800) return `${significant(seconds / 3600)} h`;
  return `${significant(seconds / 86_400)} d`;
}

/** 0 to 1. A share that is not nothing is never shown as 0. */
export function formatShare(share: number): string {
  if (share === 0) return "0 %";
  if (share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${significant(share * 100)} %`;
}

/** A time of day as `10:00`, with seconds as `10:00:05`; 24 hours, in the reader's time zone. */
export function formatClock(time: Date, seconds = false): string {
  const parts = [time.getHours(), time.getMinutes(), ...(seconds ? [time.getSeconds()] : [])];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

/** Whole numbers, grouped by thousands. */
export function formatCount(count: number): string {
  return String(Math.round(count)).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** One digit after the point below ten, two below one. */
function significant(value: number): string {
  if (value >= 10) return formatCount(value);
  return value >= 1 ? String(Number(value.toFixed(1))) : String(Number(value.toPrecision(2)));
}

/** How connections are protected on their way. */
export function describeWay(carried: Carried | undefined): string {
  switch (carried?.by) {
    case undefined:
      return "nothing: as the app sends them";
    case "istio":
      return "mutual TLS";
    case "hbone":
      return "mutual TLS, by HBONE";
    case "tls":
      return carried.mutualTls ? "mutual TLS" : "TLS, without an identity of this machine";
    case "proxy-protocol":
      return "plaintext, behind a PROXY header";
  }
}

/** A node's name and what tells it from others of the name. */
export function describeNode(node: Node): { title: string; detail: string } {
  switch (node.kind) {
    case "caller":
      return { title: node.name, detail: node.name === node.address ? node.namespace : node.address };
    case "unit":
      return { title: node.name, detail: node.source === "unit" ? "" : node.source };
    case "service":
      return { title: node.port > 0 ? `${node.name}:${node.port}` : node.name, detail: node.namespace };
    case "endpoint": {
      const at = endpointAddress(node.address, node.port);
      return node.workload && node.name !== at
        ? { title: node.name, detail: at }
        : { title: at, detail: node.namespace };
    }
    case "outside":
      return { title: node.name, detail: "no endpoint of the mesh" };
  }
}

export function endpointAddress(address: string, port: number): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}
