/** The addresses at which peers could reach this machine. */
import { readFileSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { usableAddresses } from "../istiod/node.ts";
import { canonicalAddress } from "../mesh/address.ts";

export interface InterfaceAddress {
  name: string;
  address: string;
}

/** Interfaces of bridges, containers and virtual machines. Other machines can't reach their addresses. */
const INNER =
  /^(br-|docker|podman|virbr|vnet|veth|cni|cbr|flannel|cali|tunl|vxlan|cilium|lxc|lxdbr|weave|kube-|nodelocaldns|antrea|ovs|ovn|genev)/;
/** include/uapi/linux/if_addr.h: IFA_F_TEMPORARY, DADFAILED, DEPRECATED, TENTATIVE. */
const FLEETING = 0x01 | 0x08 | 0x20 | 0x40;

/** IPv4 before IPv6, addresses of the default route's interface before others; no temporary or deprecated ones. */
export function machineAddresses(): string[] {
  const all = Object.entries(networkInterfaces()).flatMap(([name, list]) =>
    (list ?? []).map(({ address }) => ({ name, address })),
  );
  return choose(all, fleeting(textOf("/proc/net/if_inet6")), defaultInterface(textOf("/proc/net/route")));
}

/** Selects from `all`; canonical and in order. `passing` are temporary IPv6 addresses, `main` is an interface's name. */
export function choose(
  all: readonly InterfaceAddress[],
  passing: ReadonlySet<string>,
  main: string | undefined,
): string[] {
  const outer = all.filter(({ name, address }) => !INNER.test(name) && !passing.has(address));
  const sorted = [...outer.filter(({ name }) => name === main), ...outer.filter(({ name }) => name !== main)];
  const usable = usableAddresses(sorted.map(({ address }) => address));
  const family = (v6: boolean) => usable.filter((address) => address.includes(":") === v6);
  return [...family(false), ...family(true)];
}

/** The IPv6 addresses in /proc/net/if_inet6 that are temporary, deprecated or not yet in use. */
export function fleeting(table: string): Set<string> {
  const found = new Set<string>();
  for (const line of table.split("\n")) {
    const [digits = "", , , , flags = ""] = line.trim().split(/\s+/);
    if ((Number.parseInt(flags, 16) & FLEETING) === 0) continue;
    const address = canonicalAddress(digits.match(/.{4}/g)?.join(":") ?? "");
    if (address !== undefined) found.add(address);
  }
  return found;
}

/** The interface of the IPv4 default route with the smallest metric in /proc/net/route; undefined without one. */
export function defaultInterface(table: string): string | undefined {
  const routes = table
    .split("\n")
    .slice(1)
    .map((line) => line.split("\t"))
    .filter(([, destination, , flags, , , , mask]) => {
      // RTF_UP without RTF_REJECT.
      const bits = Number.parseInt(flags ?? "0", 16);
      return destination === "00000000" && mask === "00000000" && (bits & 1) !== 0 && (bits & 0x200) === 0;
    })
    .sort(([, , , , , , one = "0"], [, , , , , , other = "0"]) => Number(one) - Number(other));
  return routes[0]?.[0];
}

/** "" if the kernel does not have the family. */
function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
