/** What the machine can resolve where istiod sends no table of names: the services themselves. */
import { namesOfFrontends } from "../kernel-native/resolvable.ts";
import type { Frontend, Name } from "../mesh/model.ts";
import type { Store } from "./store/store.ts";

/** Names of services with an address in this network; of headless ones with the addresses of their workloads. */
export function namesOfServices(store: Store, network: string, namespace: string): Map<string, Name> {
  return namesOfFrontends(addressesOf(store, network), namespace);
}

function* addressesOf(store: Store, network: string): Generator<Frontend> {
  for (const record of store.services.values()) {
    const { key, host, addresses } = record;
    if (!store.sees(record)) continue;
    const single = addresses.filter((each) => each.network === network && each.length === undefined);
    for (const { address } of single) yield frontend(host, address);
    if (addresses.length > 0) continue;
    for (const { addresses: own, healthy } of store.membersOf(key))
      if (healthy) for (const address of own) yield frontend(host, address);
  }
}

function frontend(host: string, address: string): Frontend {
  return {
    match: { kind: "address", address, port: 0 },
    protocol: "tcp",
    service: `${host}:0`,
    target: { kind: "passthrough" },
  };
}
