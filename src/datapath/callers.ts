/**
 * Callers whose connections to apps the tunnel carries (bpf/maps/caller.h): apps are shown them, and the traffic is counted for
 * them.
 */
import { monotonic } from "../kernel/clock.ts";
import { ERRNO, KernelError } from "../kernel/error.ts";
import type { BpfMap } from "../kernel/maps.ts";
import type { TaskIdentity } from "../kernel/process.ts";
import { addressBytes } from "../mesh/address.ts";
import { otherPeersKey, type Proof, peerKey, putPeer } from "./peers.ts";
import * as layout from "./tables/layout.gen.ts";

export interface AddressAndPort {
  address: string;
  port: number;
}

const KEY = layout.caller_key;
const VALUE = layout.caller;
const CARRIED = layout.carried;

/**
 * The key of a connection from `own` to `appPort` of the same address. Throws RangeError for an address that is none.
 */
export function callerKey(own: AddressAndPort, appPort: number): Uint8Array {
  const key = new Uint8Array(new ArrayBuffer(KEY.size));
  key.set(addressBytes(own.address), KEY.fields.address.offset);
  setPort(key, KEY.fields.port.offset, own.port);
  setPort(key, KEY.fields.app_port.offset, appPort);
  return key;
}

/**
 * From now on getpeername() and accept() of the app show `caller`. `owner` is the process that keeps the connection. Throws KernelError: the map is full (E2BIG).
 */
export function putCaller(map: BpfMap, key: Uint8Array, caller: AddressAndPort, owner: TaskIdentity): void {
  const value = new Uint8Array(new ArrayBuffer(VALUE.size));
  value.set(addressBytes(caller.address), VALUE.fields.address.offset);
  setPort(value, VALUE.fields.port.offset, caller.port);
  setOwner(value, VALUE, owner);
  map.update(key, value);
}

/** Removes the entries of processes that have ended. Gives how many. */
export function sweepCallers(map: BpfMap, lives: (owner: TaskIdentity) => boolean): number {
  let removed = 0;
  for (const { key, isAlive } of owned(map, VALUE, lives)) {
    if (isAlive) continue;
    map.delete(key());
    removed++;
  }
  return removed;
}

/** How long an app's end of a connection may outlive the tunnel's and still be counted for the caller. */
const REST_NS = 600n * 1_000_000_000n;

/** Whether connections that are accepted on the local port are counted. `served` is the map served_ports. Throws KernelError. */
export function isCounted(served: BpfMap, port: number): boolean {
  const word = new BigUint64Array(1);
  served.lookup(new Uint8Array(Uint32Array.of(port >> 6).buffer), new Uint8Array(word.buffer));
  return (((word[0] ?? 0n) >> BigInt(port & 63)) & 1n) === 1n;
}

/**
 * From now on the connection `key` is counted for `caller`, and for what it has proved. Gives the entry for `endCarried`. Throws
 * KernelError: the map is full (E2BIG).
 */
export function putCarried(
  maps: { carried: BpfMap; peers: BpfMap },
  key: Uint8Array,
  { address, proof }: { address: string; proof?: Proof | undefined },
  owner: TaskIdentity,
): Uint8Array {
  const { fields } = CARRIED;
  const value = new Uint8Array(new ArrayBuffer(CARRIED.size));
  const remote = proof ? peerKey(address, proof) : addressBytes(address);
  value.set(remote, fields.remote.offset);
  value.set(key.subarray(KEY.fields.port.offset, KEY.size), fields.port.offset);
  setOwner(value, CARRIED, owner);
  maps.carried.update(key, value);
  // After the entry that keeps it: an agent removes callers that nothing names (src/telemetry/ageing.ts).
  if (proof && !putPeer(maps.peers, remote, address, proof)) {
    value.set(otherPeersKey(proof.by), fields.remote.offset);
    maps.carried.update(key, value);
  }
  return value;
}

/**
 * The tunnel's end of the connection is closed. The app may close its end later. Leaves alone what another process has put there
 * since, for a connection of its own from the same port. Throws KernelError.
 */
export function endCarried(map: BpfMap, key: Uint8Array, value: Uint8Array): void {
  const now = new Uint8Array(new ArrayBuffer(CARRIED.size));
  // Missing: the app's end was first, and is counted.
  if (!map.lookup(key, now) || Buffer.compare(now, value) !== 0) return;
  new DataView(value.buffer).setBigUint64(CARRIED.fields.until_ns.offset, monotonic(), true);
  try {
    map.update(key, value, "exists");
  } catch (error) {
    if (!(error instanceof KernelError && error.errno === ERRNO.ENOENT)) throw error;
  }
}

/**
 * Ends the entries of processes that have ended, and removes those that ended long ago: the apps keep sockets that nobody is
 * connected to. Those of other processes that live are left to them. `now` is of CLOCK_MONOTONIC, nanoseconds. Throws KernelError.
 */
export function sweepCarried(
  map: BpfMap,
  own: TaskIdentity,
  lives: (owner: TaskIdentity) => boolean,
  now = monotonic(),
): void {
  const { until_ns } = CARRIED.fields;
  for (const { key, value, view, at, owner, isAlive } of owned(map, CARRIED, lives)) {
    const until = view.getBigUint64(at + until_ns.offset, true);
    const isOwn = owner.tgid === own.tgid && owner.startTicks === own.startTicks;
    if (isAlive && !isOwn) continue;
    if (until === 0n && !isAlive) endCarried(map, key(), value());
    else if (until !== 0n && now - until > REST_NS) map.delete(key());
  }
}

interface Owned {
  owner: TaskIdentity;
  isAlive: boolean;
  /** All values, and where this one begins. */
  view: DataView;
  at: number;
  key(): Uint8Array;
  value(): Uint8Array;
}

/** The entries of a map whose values name the process that wrote them. */
function* owned(
  map: BpfMap,
  { size, fields }: typeof VALUE | typeof CARRIED,
  lives: (owner: TaskIdentity) => boolean,
): Generator<Owned, undefined> {
  const { keys, values, count } = map.entries();
  const view = new DataView(values.buffer, values.byteOffset);
  const known = new Map<string, boolean>();
  for (let i = 0; i < count; i++) {
    const at = i * size;
    const owner = {
      tgid: view.getUint32(at + fields.pid.offset, true),
      startTicks: view.getBigUint64(at + fields.start_ticks.offset, true),
    };
    const name = `${owner.tgid} ${owner.startTicks}`;
    const isAlive = known.get(name) ?? lives(owner);
    known.set(name, isAlive);
    const key = () => keys.slice(i * KEY.size, (i + 1) * KEY.size);
    yield { owner, isAlive, view, at, key, value: () => values.slice(at, at + size) };
  }
}

/** Names the process that keeps an entry, for `owned`. */
function setOwner(
  value: Uint8Array<ArrayBuffer>,
  { fields }: typeof VALUE | typeof CARRIED,
  { tgid, startTicks }: TaskIdentity,
): void {
  const view = new DataView(value.buffer);
  view.setUint32(fields.pid.offset, tgid, true);
  view.setBigUint64(fields.start_ticks.offset, startTicks, true);
}

function setPort(bytes: Uint8Array, at: number, port: number): void {
  bytes[at] = port >> 8;
  bytes[at + 1] = port & 0xff;
}
