/** The header of the PROXY protocol, versions 1 and 2 (haproxy.org/download/2.9/doc/proxy-protocol.txt). */
import { isIPv4, isIPv6 } from "node:net";
import { parseAddress } from "../../mesh/address.ts";

export interface AddressAndPort {
  address: string;
  port: number;
}

const SIGNATURE = Buffer.from("\r\n\r\n\0\r\nQUIT\n", "latin1");

/** What goes before the app's bytes. Addresses of two families, or none that are known, make it an UNKNOWN or LOCAL one. */
export function proxyHeader(version: 1 | 2, source: AddressAndPort, destination: AddressAndPort): Buffer {
  const from = plain(source.address);
  const to = plain(destination.address);
  const v4 = isIPv4(from) && isIPv4(to);
  const known = v4 || (isIPv6(from) && isIPv6(to));
  if (version === 1) {
    const text = known
      ? `PROXY ${v4 ? "TCP4" : "TCP6"} ${from} ${to} ${source.port} ${destination.port}\r\n`
      : "PROXY UNKNOWN\r\n";
    return Buffer.from(text, "latin1");
  }
  if (!known) return Buffer.concat([SIGNATURE, Buffer.of(0x20, 0, 0, 0)]);
  const addresses = [from, to].flatMap((address) => [...(parseAddress(address) ?? []).slice(v4 ? -4 : 0)]);
  const body = Buffer.alloc(addresses.length + 4);
  body.set(addresses);
  body.writeUInt16BE(source.port, addresses.length);
  body.writeUInt16BE(destination.port, addresses.length + 2);
  return Buffer.concat([SIGNATURE, Buffer.of(0x21, v4 ? 0x11 : 0x21, 0, body.length), body]);
}

function plain(address: string): string {
  return address.startsWith("::ffff:") && address.includes(".") ? address.slice(7) : address;
}
