/** Datagrams to unix sockets, which the node: modules do not offer. */
import { check } from "../error.ts";
import { native } from "../native.ts";

/**
 * Sends one datagram. `address` is a path, or "@" and an abstract name.
 * Throws KernelError: ECONNREFUSED and ENOENT when nobody listens, EAGAIN when the receiver was behind for two seconds.
 */
export function sendDatagram(address: string, message: string): void {
  const name = Buffer.from(address);
  if (address.startsWith("@")) name[0] = 0;
  const bytes = Buffer.from(message);
  const result = native().kmesh_send_datagram(name, name.length, bytes, BigInt(bytes.length));
  check(result, "sendto", address);
}
