/** istiod's services, workloads and policies, and what of them is to be compiled again. */
import { MalformedResource, type ResourceType } from "../../istiod/stream/sink.ts";
import { type NamesRecord, NameTableReader, NO_NAMES } from "../../kernel-native/resources/names.ts";
import { keyOf, type WorkloadIndex } from "../../mesh/workload.ts";
import { type Authorization, parseAuthorization } from "../../policy/authorization.ts";
import { AddressReader } from "../records/address.ts";
import {
  addressKey,
  type Binding,
  destinationKey,
  type Gateway,
  type NetworkAddress,
  type ServiceRecord,
  type WorkloadRecord,
} from "../records/records.ts";
import type { WorkloadReader } from "../records/workload.ts";
import { Groups } from "./groups.ts";
import { hostOf, Sidecars } from "./sidecars.ts";
import { Workload, WorkloadTable } from "./workload-table.ts";

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
const NONE: readonly never[] = [];

/** Marks a workload among the users of a gateway; services' names have no space. */
const DIRECT = "workload ";

export class Store {
  readonly services = new Map<string, ServiceRecord>();
  readonly workloads = new WorkloadTable();
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
  /** Rows of the workloads of a service, also of one that istiod has not sent. */
  readonly #members = new Map<string, number[]>();
  /** Services by address in its network. */
  readonly #byAddress = new Groups();
  /** Services by host. */
  readonly #byHost = new Groups();
  /** By destination of a waypoint or gateway: services, and workloads behind DIRECT, that go through it. */
  readonly #users = new Groups();
  /** Workloads by what gateways call them, as far as they were looked for. */
  readonly #found = new Map<string, Workload | "nobody">();
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
        try {
          const address = this.#reader.read(name, bytes);
          if (address === "workload") this.#putWorkload(name, this.#reader.workload);
          else this.#putService(name, address);
        } finally {
          this.#reader.release();
        }
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
      this.#removeWorkload(name);
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

  /** The workloads of a service, as they are now: copy what must outlive a change. */
  membersOf(service: string): Workload[] {
    const rows = this.#members.get(service);
    return rows === undefined ? [] : rows.map((row) => new Workload(this.workloads, row));
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
  workloadAt(destination: Gateway["destination"]): Workload | undefined {
    const key = destinationKey(destination);
    let found = this.#found.get(key);
    if (found === undefined) {
      found = this.#findWorkload(key) ?? "nobody";
      this.#found.set(key, found);
    }
    return found === "nobody" ? undefined : found;
  }

  #findWorkload(key: string): Workload | undefined {
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

  #putWorkload(uid: string, fields: WorkloadReader): void {
    const before = this.workloads.get(uid);
    const old = before?.bindings ?? NONE;
    if (before) {
      this.#leaveWaypoint(before);
      this.#touchWorkload(before);
    }
    const row = this.workloads.set(uid, fields);
    this.#bind(row, old, fields.bindings);
    const record = new Workload(this.workloads, row);
    this.#touchWorkload(record);
    this.#enter(record, fields);
    if (this.#isSelf(record)) this.#setOwn(record.copy());
  }

  #removeWorkload(uid: string): void {
    const before = this.workloads.get(uid);
    if (before === undefined) return;
    const isSelf = this.#isSelf(before);
    this.#leaveWaypoint(before);
    this.#touchWorkload(before);
    this.#bind(before.row, before.bindings, NONE);
    this.workloads.delete(uid);
    if (isSelf) this.#setOwn(undefined);
  }

  #setOwn(record: WorkloadRecord | undefined): void {
    const place = this.own?.profile;
    this.own = record;
    this.#dirty.inbound = true;
    // Ranks are counted from where this machine is.
    if (place?.region !== record?.profile.region || place?.zone !== record?.profile.zone) this.#touchRanked();
    else if (place?.subzone !== record?.profile.subzone || place?.node !== record?.profile.node)
      this.#touchRanked();
  }

  /** Makes a workload a member of its services, and of no others. */
  #bind(row: number, old: readonly Binding[], now: readonly Binding[]): void {
    if (old === now) return;
    for (const { service } of old) {
      if (isIn(service, now)) continue;
      const rows = this.#members.get(service) ?? [];
      if (rows.length <= 1) this.#members.delete(service);
      else rows.splice(rows.indexOf(row), 1);
    }
    for (const { service } of now) {
      if (isIn(service, old)) continue;
      const rows = this.#members.get(service);
      if (rows === undefined) this.#members.set(service, [row]);
      else if (!rows.includes(row)) rows.push(row);
    }
  }

  #leaveWaypoint({ uid, profile: { waypoint } }: Workload): void {
    if (waypoint) this.#users.delete(destinationKey(waypoint.destination), DIRECT + uid);
  }

  #enter({ uid, profile, bindings }: Workload, fields: WorkloadReader): void {
    const { gateway, waypoint } = profile;
    if (gateway)
      for (const { service } of bindings) this.#users.add(destinationKey(gateway.destination), service);
    if (waypoint) this.#users.add(destinationKey(waypoint.destination), DIRECT + uid);
    if (this.#index) {
      fields.writeText(this.#index.draft);
      setText(this.#index, fields);
    }
  }

  /** Marks what depends on a workload as it is now. */
  #touchWorkload(record: Workload): void {
    const { profile } = record;
    for (const { service } of record.bindings) {
      this.#dirty.services.add(service);
      this.sidecars?.touch(service);
      this.#touchUsers(service, NONE);
    }
    if (isTunnelled(profile)) this.#dirty.direct.add(record.uid);
    if (this.#users.size > 0 || this.#found.size > 0) this.#touchUsers(undefined, keysOf(record));
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

  #isSelf(record: Workload): boolean {
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

function isIn(service: string, bindings: readonly Binding[]): boolean {
  return bindings.some((each) => each.service === service);
}

/** Records the text in the index's draft for a workload's endpoints. */
function setText(index: WorkloadIndex, { v4, addresses, bindings }: WorkloadReader): void {
  const text = index.endDraft();
  for (const { ports } of bindings)
    for (const { target } of ports) {
      if (v4 !== undefined) index.put(v4 * 65536 + target, text);
      else for (const address of addresses) index.put(keyOf(address, target), text);
    }
}

function gatewaysOf(record: ServiceRecord | undefined): readonly Gateway[] {
  if (record === undefined) return NONE;
  const { waypoint, weightedWaypoints } = record;
  if (weightedWaypoints.length === 0) return waypoint ? [waypoint] : NONE;
  return [...(waypoint ? [waypoint] : []), ...weightedWaypoints.map(({ gateway }) => gateway)];
}

function clean(): Dirty {
  return { services: new Set(), records: false, direct: new Set(), inbound: false, names: false };
}
