/** Shows apps the callers whose connections the tunnel ends (bpf/maps/caller.h). */
import type { BpfMap } from "../kernel/maps.ts";
import type { TaskIdentity } from "../kernel/process.ts";
import { parseAddress } from "../mesh/address.ts";
import * as layout from "./tables/layout.gen.ts";

export interface AddressAndPort {
  address: string;
  port: number;
}

const KEY = layout.caller_key;
const VALUE = layout.caller;

/**
 * The key of a connection from `own` to `appPort` of the same address. Throws RangeError for an address that is none.
 */
export function callerKey(own: AddressAndPort, appPort: number): Uint8Array {
  const key = new Uint8Array(new ArrayBuffer(KEY.size));
  key.set(bytesOf(own.address), KEY.fields.address.offset);
  setPort(key, KEY.fields.port.offset, own.port);
  setPort(key, KEY.fields.app_port.offset, appPort);
  return key;
}

/**
 * From now on getpeername() and accept() of the app show `caller`. `owner` is the process that keeps the connection. Throws KernelError: the map is full (E2BIG).
 */
export function putCaller(map: BpfMap, key: Uint8Array, caller: AddressAndPort, owner: TaskIdentity): void {
  const value = new Uint8Array(new ArrayBuffer(VALUE.size));
  value.set(bytesOf(caller.address), VALUE.fields.address.offset);
  setPort(value, VALUE.fields.port.offset, caller.port);
  const view = new DataView(value.buffer);
  view.setUint32(VALUE.fields.pid.offset, owner.tgid, true);
  view.setBigUint64(VALUE.fields.start_ticks.offset, owner.startTicks, true);
  map.update(key, value);
}

/** Removes the entries of processes that have ended. Gives how many. */
export function sweepCallers(map: BpfMap, lives: (owner: TaskIdentity) => boolean): number {
  const { keys, values, count } = map.entries();
  const view = new DataView(values.buffer, values.byteOffset);
  const known = new Map<string, boolean>();
  let removed = 0;
  for (let i = 0; i < count; i++) {
    const at = i * VALUE.size;
    const owner = {
      tgid: view.getUint32(at + VALUE.fields.pid.offset, true),
      startTicks: view.getBigUint64(at + VALUE.fields.start_ticks.offset, true),
    };
    const name = `${owner.tgid} ${owner.startTicks}`;
    const alive = known.get(name) ?? lives(owner);
    known.set(name, alive);
    if (alive) continue;
    map.delete(new Uint8Array(keys.slice(i * KEY.size, (i + 1) * KEY.size)));
    removed++;
  }
  return removed;
}

function bytesOf(address: string): Uint8Array {
  const bytes = parseAddress(address);
  if (!bytes) throw new RangeError(`${address} is no address`);
  return bytes;
}

function setPort(bytes: Uint8Array, at: number, port: number): void {
  bytes[at] = port >> 8;
  bytes[at + 1] = port & 0xff;
}
