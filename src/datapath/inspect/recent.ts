/** Reads the last refused and failed connections from the kernel's maps (bpf/include/recent.h). */
import { monotonic } from "../../kernel/clock.ts";
import { fixedText } from "../../kernel/info.ts";
import type { BpfMap } from "../../kernel/maps.ts";
import { formatAddress } from "../../mesh/address.ts";
import type { Reason } from "../../mesh/model.ts";
import { reasonName } from "../mesh-tables/target.ts";
import { peerBehind } from "../mesh-tables/tunnel-targets.ts";
import * as layout from "../tables/layout.gen.ts";
import type { Tables } from "../tables/tables.ts";

const { fields: AT } = layout.recent;
const { RECENT_REFUSED } = layout.enums.recent_kind;
/** The bit of a source that marks a user id. */
const SOURCE_USER = 1n << 47n;
/** Attempts to read a record that is being written. */
const TRIES = 3;

export interface RecentConnection {
  /** The number of the connection among all refused and failed ones. */
  number: number;
  /** Its age, milliseconds. */
  agoMs: number;
  /** "refused": on purpose, with a reason. "failed": the endpoint refused or did not answer. */
  outcome: "refused" | "failed";
  reason?: Reason;
  /** The destination that the app asked for. */
  address: string;
  port: number;
  /** The service; "" without one. */
  service: string;
  /** The endpoint of a failed connection. */
  endpoint?: { address: string; port: number };
  /** The systemd unit or cgroup that connected, or "user 1000". Absent when unknown. */
  unit?: string;
  pid?: number;
  /** The command's name, as in /proc/PID/comm. */
  command?: string;
}

/** All records in the kernel, the newest first. `serviceName` gives "" for an unknown id. Throws KernelError. */
export function recentConnections(tables: Tables, serviceName: (id: number) => string): RecentConnection[] {
  const { maps } = tables;
  const { keySize, valueSize, maxEntries } = maps.recent.info;
  const now = monotonic();
  const units = new Map<bigint, string>();
  const found: RecentConnection[] = [];
  for (let at = 0; at < maxEntries; at++) {
    const bytes = readWhole(maps.recent, at, keySize, valueSize);
    if (!bytes) continue;
    const view = new DataView(bytes.buffer);
    const source = view.getBigUint64(AT.source.offset, true);
    if (!units.has(source)) units.set(source, unitOf(maps.source_names, source));
    const record = connection(view, bytes, now, units.get(source) ?? "", serviceName);
    const peer = record.endpoint && peerBehind(tables, record.endpoint.address, record.endpoint.port);
    found.push(peer ? { ...record, endpoint: { address: peer.address, port: peer.port } } : record);
  }
  return found.sort((a, b) => b.number - a.number);
}

/** A consistent record; undefined when it is empty, or written at each attempt. */
function readWhole(
  map: BpfMap,
  at: number,
  keySize: number,
  valueSize: number,
): Uint8Array<ArrayBuffer> | undefined {
  const key = new Uint8Array(keySize);
  new DataView(key.buffer).setUint32(0, at, true);
  const read = () => {
    const bytes = new Uint8Array(new ArrayBuffer(valueSize));
    map.lookup(key, bytes);
    return bytes;
  };
  let before = read();
  for (let i = 0; i < TRIES; i++) {
    const after = read();
    const isSame = Buffer.compare(before, after) === 0;
    if (isSame) return new DataView(after.buffer).getBigUint64(AT.number.offset, true) ? after : undefined;
    before = after;
  }
  return undefined;
}

function connection(
  view: DataView,
  bytes: Uint8Array,
  now: bigint,
  unit: string,
  serviceName: (id: number) => string,
): RecentConnection {
  const address = (offset: number) => formatAddress(bytes.slice(offset, offset + 16));
  const isRefused = view.getUint8(AT.kind.offset) === RECENT_REFUSED;
  const endpointPort = view.getUint16(AT.endpoint_port.offset);
  const pid = view.getUint32(AT.pid.offset, true);
  const command = fixedText(bytes.slice(AT.command.offset, AT.command.offset + AT.command.size * 16));
  return {
    number: Number(view.getBigUint64(AT.number.offset, true)),
    agoMs: Number((now - view.getBigUint64(AT.at_ns.offset, true)) / 1_000_000n),
    outcome: isRefused ? "refused" : "failed",
    ...(isRefused ? { reason: reasonName(view.getUint8(AT.reason.offset)) } : {}),
    address: address(AT.asked.offset),
    port: view.getUint16(AT.asked_port.offset),
    service: serviceName(view.getUint32(AT.service.offset, true)),
    ...(endpointPort > 0 ? { endpoint: { address: address(AT.endpoint.offset), port: endpointPort } } : {}),
    ...(unit === "" ? {} : { unit }),
    ...(pid === 0 ? {} : { pid }),
    ...(command === "" ? {} : { command }),
  };
}

/** The name of a source (bpf/include/source.h); "" without one. */
function unitOf(names: BpfMap, source: bigint): string {
  if (source >= SOURCE_USER) return `user ${source & 0xffffffffn}`;
  const name = new Uint8Array(new ArrayBuffer(names.info.valueSize));
  const key = new Uint8Array(BigUint64Array.of(source).buffer);
  return source > 0n && names.lookup(key, name) ? fixedText(name) : "";
}
