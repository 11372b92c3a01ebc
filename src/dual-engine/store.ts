/** istiod's services, workloads and policies, and what of them is to be compiled again. */
import { MalformedResource, type ResourceType } from "../istiod/stream/sink.ts";
import { type NamesRecord, NameTableReader, NO_NAMES } from "../kernel-native/resources/names.ts";
import { keyOf, type WorkloadIndex } from "../mesh/workload.ts";
import { type Authorization, parseAuthorization } from "../policy/authorization.ts";
import { AddressReader } from "./address.ts";
import { Groups } from "./groups.ts";
import {
  addressKey,
  destinationKey,
  type Gateway,
  type NetworkAddress,
  type ServiceRecord,
  type WorkloadRecord,
} from "./records.ts";
import { hostOf, Sidecars } from "./sidecars.ts";

/** The changes for the next compilation. */
export interface Dirty {
  /** Services by resource name, removed ones too. */
  services: Set<string>;
  /** A service itself changed, not only its workloads. */
  records: boolean;
  /** Workloads by uid that are, or were, addressed directly through a tunnel. */
  direct: Set<string>;
  /** The machine's own workload or the policies changed. */
  inbound: boolean;
  names: boolean;
}

/** How the machine's own workload is recognised. */
export interface Self {
  /** The end of its uid when istiod registers it: `WorkloadEntry/NAMESPACE/NAME`. */
  entry: string | undefined;
  namespace: string;
  network: string;
  addresses: ReadonlySet<string>;
}

/** The name of a policy that a PeerAuthentication became. */
const CONVERTED = /\/(istio_)?converted_/;
/** Marks a workload among the users of a gateway; services' names have no space. */
const DIRECT = "workload ";

export class Store {
  readonly services = new Map<string, ServiceRecord>();
  readonly workloads = new Map<string, WorkloadRecord>();
  readonly authorizations = new Map<string, Authorization>();
  names: NamesRecord = NO_NAMES;
  readonly #nameTableReader = new NameTableReader();
  /** The machine's own workload; undefined when istiod has none, or not yet. */
  own: WorkloadRecord | undefined;
  /** Which peers take a sidecar's mutual TLS; undefined where nothing carries it. */
  readonly sidecars: Sidecars | undefined;
  /** The policies that it named when the last push was complete. */
  #named: readonly string[] = [];
  readonly #self: Self;
  readonly #index: WorkloadIndex | undefined;
  readonly #reader = new AddressReader();
  /** Workloads of a service, also of one that istiod has not sent. */
  readonly #members = new Groups<WorkloadRecord>();
  /** Services by address in its network. */
  readonly #byAddress = new Groups<string>();
  /** Services by host. */
  readonly #byHost = new Groups<string>();
  /** By destination of a waypoint or gateway: services, and workloads behind DIRECT, that go through it. */
  readonly #users = new Groups<string>();
  /** Workloads by what gateways call them, as far as they were looked for. */
  readonly #found = new Map<string, WorkloadRecord | "nobody">();
  #dirty: Dirty = clean();

  /** With `tunnel` the store asks for what EDS knows of sidecars. */
  constructor(self: Self, index?: WorkloadIndex, tunnel = false) {
    this.#self = self;
    this.#index = index;
    this.sidecars = tunnel ? new Sidecars(this, self.network) : undefined;
  }

  /** Decodes and stores one resource. Throws MalformedResource; the stored version then stays. */
  upsert(type: ResourceType, name: string, bytes: Uint8Array): void {
    switch (type) {
      case "address": {
        const address = this.#reader.read(name, bytes);
        if (address.kind === "service") this.#putService(name, address.service);
        else this.#putWorkload(name, address.workload);
        break;
      }
      case "authorization":
        this.authorizations.set(name, parseAuthorization(name, bytes));
        this.#dirty.inbound = true;
        break;
      case "endpoints":
        if (this.sidecars?.put(name, bytes)) this.#touchHost(hostOf(name));
        break;
      case "names":
        this.names = this.#nameTableReader.read(name, bytes);
        this.#dirty.names = true;
        break;
      default:
        throw new MalformedResource(name, `resources of type ${type} are not used in this mode`);
    }
  }

  /** Removes one resource. Does nothing when there is none. */
  remove(type: ResourceType, name: string): void {
    if (type === "address") {
      this.#putService(name, undefined);
      this.#putWorkload(name, undefined);
    } else if (type === "authorization") {
      if (this.authorizations.delete(name)) this.#dirty.inbound = true;
    } else if (type === "endpoints") {
      if (this.sidecars?.put(name, undefined)) this.#touchHost(hostOf(name));
    } else if (type === "names") {
      this.names = NO_NAMES;
      this.#dirty.names = true;
    }
  }

  get isDirty(): boolean {
    const { services, direct, inbound, names } = this.#dirty;
    return services.size > 0 || direct.size > 0 || inbound || names;
  }

  /**
   * Whether the machine's own workload names a policy that is not known, or no longer names one that is: istiod changes both in
   * one push, the workload first. Names of the push before don't count.
   */
  get awaitsPolicies(): boolean {
    if (!this.own) return false;
    const names = this.own.profile.policies;
    const added = names.some((name) => !this.#named.includes(name) && !this.authorizations.has(name));
    // What a PeerAuthentication became stays known while others become the same.
    const kept = (name: string) => !CONVERTED.test(name) && this.authorizations.has(name);
    return added || this.#named.some((name) => !names.includes(name) && kept(name));
  }

  takeDirty(): Dirty {
    const dirty = this.#dirty;
    this.#named = this.own?.profile.policies ?? [];
    this.#dirty = clean();
    return dirty;
  }

  /** Marks everything for the next compilation. */
  touchAll(): void {
    for (const key of this.services.keys()) this.#dirty.services.add(key);
    for (const { uid, profile } of this.workloads.values())
      if (isTunnelled(profile)) this.#dirty.direct.add(uid);
    this.#dirty.inbound = true;
  }

  touch(services: Iterable<string>): void {
    for (const key of services) this.#dirty.services.add(key);
  }

  #touchHost(host: string): void {
    this.touch(this.#byHost.get(host));
  }

  membersOf(service: string): Iterable<WorkloadRecord> {
    return this.#members.get(service);
  }

  /** The services of this host, by resource name, the one that names mean first. */
  servicesOfHost(host: string): ServiceRecord[] {
    const records = [...this.#byHost.get(host)].flatMap((key) => this.services.get(key) ?? []);
    if (records.length < 2) return records;
    return records.sort((a, b) => this.compareServices(a, b));
  }

  /** The service at this address. */
  serviceAt(address: NetworkAddress): ServiceRecord | undefined {
    const records = [...this.#byAddress.get(addressKey(address))].flatMap(
      (key) => this.services.get(key) ?? [],
    );
    return records.filter((each) => this.sees(each)).sort((a, b) => this.compareServices(a, b))[0];
  }

  /**
   * The workload with this address, or with this hostname (NAMESPACE/HOSTNAME) and no address, as gateways to other networks
   * are given. Looks at all of them once, and remembers.
   */
  workloadAt(destination: Gateway["destination"]): WorkloadRecord | undefined {
    const key = destinationKey(destination);
    let found = this.#found.get(key);
    if (found === undefined) {
      found = this.#findWorkload(key) ?? "nobody";
      this.#found.set(key, found);
    }
    return found === "nobody" ? undefined : found;
  }

  #findWorkload(key: string): WorkloadRecord | undefined {
    for (const each of this.workloads.values()) if (keysOf(each).includes(key)) return each;
    return undefined;
  }

  /** Whether machines of this one's namespace see the service. */
  sees({ isPrivate, namespace }: ServiceRecord): boolean {
    return !isPrivate || namespace === this.#self.namespace;
  }

  /**
   * Which of two services has an address that both have, or a name: that of this machine's namespace, then a canonical one, then
   * the first by name. Negative: the first one.
   */
  compareServices(one: ServiceRecord, other: ServiceRecord): number {
    const order = (record: ServiceRecord) =>
      `${record.namespace === this.#self.namespace ? 0 : 1}${record.canonical ? 0 : 1} ${record.key}`;
    return order(one) < order(other) ? -1 : 1;
  }

  #putService(key: string, record: ServiceRecord | undefined): void {
    const before = this.services.get(key);
    if (before === undefined && record === undefined) return;
    for (const gateway of gatewaysOf(before)) this.#users.delete(destinationKey(gateway.destination), key);
    for (const gateway of gatewaysOf(record)) this.#users.add(destinationKey(gateway.destination), key);
    for (const address of before?.addresses ?? []) this.#byAddress.delete(addressKey(address), key);
    for (const address of record?.addresses ?? []) this.#byAddress.add(addressKey(address), key);
    // Who shares its host may be called by another name now.
    const host = record?.host ?? before?.host ?? "";
    if (before === undefined || record === undefined || before.canonical !== record.canonical) {
      for (const other of this.#byHost.get(host)) this.#dirty.services.add(other);
    }
    if (record === undefined) {
      this.services.delete(key);
      this.#byHost.delete(host, key);
    } else {
      this.services.set(key, record);
      this.#byHost.add(host, key);
    }
    for (const { uid, profile } of this.membersOf(key)) if (isTunnelled(profile)) this.#dirty.direct.add(uid);
    this.sidecars?.touch(key);
    this.#touchUsers(key, [...(before?.addresses ?? []), ...(record?.addresses ?? [])].map(addressKey));
    this.#dirty.services.add(key);
    this.#dirty.records = true;
  }

  #putWorkload(uid: string, record: WorkloadRecord | undefined): void {
    const before = this.workloads.get(uid);
    if (before === undefined && record === undefined) return;
    if (before) this.#withdraw(before);
    if (record === undefined) this.workloads.delete(uid);
    else {
      this.workloads.set(uid, record);
      this.#enter(record);
    }
    if (this.#isSelf(record ?? before)) {
      const place = this.own?.profile;
      this.own = record;
      this.#dirty.inbound = true;
      // Ranks are counted from where this machine is.
      if (place?.region !== record?.profile.region || place?.zone !== record?.profile.zone)
        this.#touchRanked();
      else if (place?.subzone !== record?.profile.subzone || place?.node !== record?.profile.node)
        this.#touchRanked();
    }
  }

  #enter(record: WorkloadRecord): void {
    const { profile, bindings, addresses, text, uid } = record;
    const shared = this.#index?.intern(text);
    if (shared !== undefined) record.text = shared;
    for (const { service, ports } of bindings) {
      this.#members.add(service, record);
      this.#dirty.services.add(service);
      this.sidecars?.touch(service);
      this.#touchUsers(service, []);
      if (profile.gateway) this.#users.add(destinationKey(profile.gateway.destination), service);
      if (shared === undefined) continue;
      for (const address of addresses)
        for (const { target } of ports) this.#index?.set(keyOf(address, target), shared);
    }
    if (profile.waypoint) this.#users.add(destinationKey(profile.waypoint.destination), DIRECT + uid);
    if (isTunnelled(profile)) this.#dirty.direct.add(uid);
    this.#touchUsers(undefined, keysOf(record));
  }

  #withdraw(record: WorkloadRecord): void {
    const { profile, bindings, uid } = record;
    for (const { service } of bindings) {
      this.#members.delete(service, record);
      this.#dirty.services.add(service);
      this.sidecars?.touch(service);
      this.#touchUsers(service, []);
    }
    if (profile.waypoint) this.#users.delete(destinationKey(profile.waypoint.destination), DIRECT + uid);
    if (isTunnelled(profile)) this.#dirty.direct.add(uid);
    this.#touchUsers(undefined, keysOf(record));
  }

  /**
   * Marks what goes through this service, or through a destination with one of these keys; and what goes through those, since a
   * waypoint may be behind a gateway.
   */
  #touchUsers(service: string | undefined, destinations: readonly string[], deeper = true): void {
    if (this.#found.size > 0) for (const key of destinations) this.#found.delete(key);
    if (this.#users.size === 0) return;
    const keys = [...destinations];
    if (service !== undefined) {
      keys.push(service);
      for (const address of this.services.get(service)?.addresses ?? []) keys.push(addressKey(address));
    }
    for (const key of keys) {
      for (const user of this.#users.get(key)) {
        if (user.startsWith(DIRECT)) this.#dirty.direct.add(user.slice(DIRECT.length));
        else {
          this.#dirty.services.add(user);
          if (deeper) this.#touchUsers(user, [], false);
        }
      }
    }
  }

  #touchRanked(): void {
    for (const { key, scopes } of this.services.values())
      if (scopes.length > 0) this.#dirty.services.add(key);
  }

  #isSelf(record: WorkloadRecord | undefined): boolean {
    if (record === undefined) return false;
    const { entry, namespace, network, addresses } = this.#self;
    if (entry !== undefined && record.uid.endsWith(entry)) return true;
    const { profile } = record;
    if (entry !== undefined || profile.namespace !== namespace || profile.network !== network) return false;
    return !profile.hostNetwork && record.addresses.some((address) => addresses.has(address));
  }
}

/** Whether peers that address the workload itself need a tunnel. */
export function isTunnelled({
  tunnel,
  waypoint,
}: Pick<WorkloadRecord["profile"], "tunnel" | "waypoint">): boolean {
  return tunnel !== "none" || waypoint !== undefined;
}

/** What gateways call the workload. */
function keysOf({ profile, addresses, hostname }: WorkloadRecord): string[] {
  const { network, namespace } = profile;
  const keys = addresses.map((address) => addressKey({ network, address }));
  return hostname === "" ? keys : [`${namespace}/${hostname}`];
}

function gatewaysOf(record: ServiceRecord | undefined): Gateway[] {
  if (record === undefined) return [];
  const { waypoint, weightedWaypoints } = record;
  return [...(waypoint ? [waypoint] : []), ...weightedWaypoints.map(({ gateway }) => gateway)];
}

function clean(): Dirty {
  return { services: new Set(), records: false, direct: new Set(), inbound: false, names: false };
}
