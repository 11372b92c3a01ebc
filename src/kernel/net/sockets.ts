/** The TCP and UDP sockets of this network namespace, as the kernel lists them, with what they hold in a socket storage map. */
import { check, ERRNO, KernelError } from "../error.ts";
import type { BpfMap } from "../maps.ts";
import { native } from "../native.ts";

/** A socket's state as the kernel numbers it. A closed one that an app still holds is not listed. */
export const TCP = {
  established: 1,
  synSent: 2,
  synReceived: 3,
  finWait1: 4,
  finWait2: 5,
  timeWait: 6,
  closeWait: 8,
  lastAck: 9,
  listen: 10,
  closing: 11,
} as const;

/** States from connect() or accept() on, except those that only wait for late packets. */
export const CONNECTED: readonly number[] = Object.values(TCP).filter(
  (state) => state !== TCP.listen && state !== TCP.timeWait && state !== TCP.synReceived,
);

/** struct record in native/sockets.c. */
const AT = { family: 0, state: 1, hasValue: 2, localPort: 4, remotePort: 6, inode: 8, local: 16, remote: 32 };
const COOKIE = 48;
const CGROUP = 56;
const HEAD = 64;

/** Holds at least one answer of the kernel; about 10 ms of work. */
const BATCH_RECORDS = 4096;
const FAMILIES = { v6: 10, v4: 2 } as const;
const PROTOCOLS = { tcp: 6, udp: 17 } as const;
/** A UDP socket that is bound and not connected has the state of a closed TCP one. */
const UNCONNECTED = 7;
const LITTLE = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** A cursor over a batch: `at(i)` selects a socket, then read its members. No object is made per socket. */
export class SocketBatch {
  count = 0;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #longs: BigUint64Array;
  readonly #stride: number;
  #at = 0;

  constructor(valueSize: number) {
    this.#stride = HEAD + valueSize;
    this.#bytes = new Uint8Array(new ArrayBuffer(this.#stride * BATCH_RECORDS));
    this.#view = new DataView(this.#bytes.buffer);
    this.#longs = new BigUint64Array(this.#bytes.buffer);
  }

  at(index: number): this {
    this.#at = index * this.#stride;
    return this;
  }

  /** 2 or 10: AF_INET, AF_INET6. */
  get family(): number {
    return this.#view.getUint8(this.#at + AT.family);
  }

  /** See TCP. */
  get state(): number {
    return this.#view.getUint8(this.#at + AT.state);
  }

  get localPort(): number {
    return this.#view.getUint16(this.#at + AT.localPort);
  }

  get remotePort(): number {
    return this.#view.getUint16(this.#at + AT.remotePort);
  }

  /** The inode, as in /proc/PID/fd; 0 when no process holds the socket. */
  get inode(): number {
    return this.#view.getUint32(this.#at + AT.inode, LITTLE);
  }

  /** 16 bytes, IPv4 as v4-mapped; valid until the next batch. */
  get local(): Uint8Array {
    return this.#bytes.subarray(this.#at + AT.local, this.#at + AT.local + 16);
  }

  get remote(): Uint8Array {
    return this.#bytes.subarray(this.#at + AT.remote, this.#at + AT.remote + 16);
  }

  /** Names the socket until the next boot. */
  get cookie(): bigint {
    return this.#longs[(this.#at + COOKIE) >> 3] ?? 0n;
  }

  /** Id of the cgroup in which the socket was made; 0n when the kernel does not say. */
  get cgroup(): bigint {
    return this.#longs[(this.#at + CGROUP) >> 3] ?? 0n;
  }

  /** Whether it holds a value in the storage map. */
  get hasValue(): boolean {
    return this.#view.getUint8(this.#at + AT.hasValue) === 1;
  }

  /** A 16-bit or 32-bit word, or the aligned 8 bytes, of that value. */
  value16(offset: number): number {
    return this.#view.getUint16(this.#at + HEAD + offset, LITTLE);
  }

  value32(offset: number): number {
    return this.#view.getUint32(this.#at + HEAD + offset, LITTLE);
  }

  value64(offset: number): bigint {
    return this.#longs[(this.#at + HEAD + offset) >> 3] ?? 0n;
  }

  /** A copy of the socket's record, for `destroySocket`. */
  record(): Uint8Array<ArrayBuffer> {
    return this.#bytes.slice(this.#at, this.#at + HEAD);
  }

  /** The buffer for the next batch. */
  get buffer(): Uint8Array {
    return this.#bytes;
  }
}

/**
 * The sockets in the given states (TCP), IPv6 first, a batch at a time; the same batch is filled again and again, so keep
 * nothing of it. What is opened or closed meanwhile may be in or not. Wait between batches to let others work.
 * @param storage a "sk-storage" map whose values are wanted too
 * Throws KernelError; its message says so where the kernel has no sock_diag for TCP (the modules tcp_diag and inet_diag).
 */
export function listSockets(
  states: readonly number[] = CONNECTED,
  storage?: BpfMap,
): Generator<SocketBatch, void, void> {
  return batches("tcp", states, storage);
}

/** The same for UDP sockets that take datagrams from anybody. Needs the module udp_diag. */
export function listUdpServers(): Generator<SocketBatch, void, void> {
  return batches("udp", [UNCONNECTED]);
}

function* batches(
  protocol: keyof typeof PROTOCOLS,
  states: readonly number[],
  storage?: BpfMap,
): Generator<SocketBatch, void, void> {
  const lib = native();
  const valueSize = storage ? (storage.info.valueSize + 7) & ~7 : 0;
  const mask = states.reduce((bits, state) => bits | (1 << state), 0);
  const batch = new SocketBatch(valueSize);
  const done = new Uint32Array(new ArrayBuffer(4));
  for (const family of [FAMILIES.v6, FAMILIES.v4]) {
    const fd = check(
      lib.kmesh_sockets_open(family, PROTOCOLS[protocol], mask, storage ? storage.fd : -1),
      "sock_diag",
      `${protocol.toUpperCase()} sockets`,
    );
    try {
      for (done[0] = 0; done[0] === 0; ) {
        const { buffer } = batch;
        const count = lib.kmesh_sockets_read(fd, buffer, buffer.length, storage?.info.valueSize ?? 0, done);
        if (count < 0) throw failed(protocol, -count);
        batch.count = count;
        if (count > 0) yield batch;
      }
    } finally {
      lib.kmesh_close(fd);
    }
  }
}

function failed(protocol: keyof typeof PROTOCOLS, errno: number): KernelError {
  const detail =
    errno === ERRNO.ENOENT
      ? `the kernel can't list its sockets: it lacks the modules inet_diag and ${protocol}_diag (modprobe ${protocol}_diag)`
      : "";
  return new KernelError("sock_diag", errno, `${protocol.toUpperCase()} sockets`, detail);
}

/**
 * Ends a socket that `SocketBatch.record` named: its peer gets a RST, its app ECONNABORTED. Needs CAP_NET_ADMIN. Gives false
 * when it is gone already. Throws KernelError; its message says so where the kernel can't do it.
 */
export function destroySocket(record: Uint8Array): boolean {
  const result = native().kmesh_socket_destroy(record);
  if (result === 0) return true;
  if (result === -ERRNO.ENOENT) return false;
  const detail =
    result === -ERRNO.EOPNOTSUPP
      ? "the kernel can't end connections of others: it was built without CONFIG_INET_DIAG_DESTROY"
      : "";
  throw new KernelError("sock_destroy", -result, "a TCP socket", detail);
}

/**
 * Atomically adds `change` to the aligned 8 bytes at the start of `number`, which programs may change at the same
 * time.
 */
export function atomicAdd(number: Uint8Array, change: bigint): void {
  native().kmesh_add(number, change);
}
