/**
 * istio.workload.Workload, read from the wire: a mesh may have a hundred thousand, so no message tree is built, and what many
 * have in common becomes one object.
 */
import { Reader } from "protobufjs/minimal.js";
import { MalformedResource } from "../istiod/stream/sink.ts";
import { checkEnum, shortName } from "../kernel-native/resources/wire.ts";
import { type Binding, type Profile, TUNNELS, type WorkloadRecord } from "./records.ts";
import { addressText, gatewayOf, portOf } from "./service.ts";
import { workload } from "./workload.gen.js";

/** Where the trust domain is not given. */
const TRUST_DOMAIN = "cluster.local";
const SERVICE_ACCOUNT = "default";
/** Most shared objects of a kind. Beyond them sharing begins anew. */
const MOST_SHARED = 65_536;
const NO_BYTES: Uint8Array = new Uint8Array(0);

/** Fields of a workload that make its profile, as the message has them. */
class Draft {
  name = "";
  namespace = "";
  addresses: string[] = [];
  network = "";
  tunnel = 0;
  trustDomain = "";
  serviceAccount = "";
  waypoint = NO_BYTES;
  gateway = NO_BYTES;
  node = "";
  canonicalName = "";
  revision = "";
  workloadName = "";
  policies: string[] = [];
  status = 0;
  cluster = "";
  uid = "";
  hostname = "";
  locality = NO_BYTES;
  networkMode = 0;
  weight = 1;
  bindings: Binding[] = [];
}

export class WorkloadReader {
  readonly #profiles = new Map<string, Profile>();
  readonly #bindings = new Map<string, Binding>();
  /** The last workload's: the next one often has the same profile. */
  #last: { draft: Draft; profile: Profile } | undefined;

  /** Reads the message from the reader's position up to `end`. Throws MalformedResource; the reader's errors go through. */
  read(resource: string, reader: Reader, end: number): WorkloadRecord {
    const draft = this.#fields(resource, reader, end);
    if (draft.uid === "") throw new MalformedResource(shortName(resource), "the workload has no uid");
    if (draft.uid !== resource)
      throw new MalformedResource(
        shortName(resource),
        `the message inside is called ${shortName(draft.uid)}`,
      );
    checkEnum(resource, "tunnel_protocol", draft.tunnel, TUNNELS.length - 1);
    checkEnum(resource, "status", draft.status, 1);
    checkEnum(resource, "network_mode", draft.networkMode, 1);
    return {
      uid: resource,
      addresses: draft.addresses,
      hostname: draft.addresses.length > 0 ? "" : draft.hostname,
      text: textOf(draft),
      healthy: draft.status === 0,
      weight: draft.weight,
      profile: this.#profile(resource, draft),
      bindings: shared(draft.bindings),
    };
  }

  #fields(resource: string, reader: Reader, end: number): Draft {
    const draft = new Draft();
    while (reader.pos < end) {
      const tag = reader.uint32();
      switch (tag) {
        case (1 << 3) | 2:
          draft.name = reader.string();
          break;
        case (2 << 3) | 2:
          draft.namespace = reader.string();
          break;
        case (3 << 3) | 2:
          draft.addresses.push(addressText(resource, reader.bytes()));
          break;
        case (4 << 3) | 2:
          draft.network = reader.string();
          break;
        case 5 << 3:
          draft.tunnel = reader.uint32();
          break;
        case (6 << 3) | 2:
          draft.trustDomain = reader.string();
          break;
        case (7 << 3) | 2:
          draft.serviceAccount = reader.string();
          break;
        case (8 << 3) | 2:
          draft.waypoint = reader.bytes();
          break;
        case (9 << 3) | 2:
          draft.node = reader.string();
          break;
        case (10 << 3) | 2:
          draft.canonicalName = reader.string();
          break;
        case (11 << 3) | 2:
          draft.revision = reader.string();
          break;
        case (13 << 3) | 2:
          draft.workloadName = reader.string();
          break;
        case (16 << 3) | 2:
          draft.policies.push(reader.string());
          break;
        case 17 << 3:
          draft.status = reader.uint32();
          break;
        case (18 << 3) | 2:
          draft.cluster = reader.string();
          break;
        case (19 << 3) | 2:
          draft.gateway = reader.bytes();
          break;
        case (20 << 3) | 2:
          draft.uid = reader.string();
          break;
        case (21 << 3) | 2:
          draft.hostname = reader.string();
          break;
        case (22 << 3) | 2:
          draft.bindings.push(this.#binding(resource, reader.bytes()));
          break;
        case (24 << 3) | 2:
          draft.locality = reader.bytes();
          break;
        case 25 << 3:
          draft.networkMode = reader.uint32();
          break;
        case (27 << 3) | 2:
          // A weight of 0 is one that istiod does not mean; Envoy takes it as 1.
          draft.weight = workload.UInt32Value.decode(reader.bytes()).value || 1;
          break;
        default:
          reader.skipType(tag & 7);
      }
    }
    if (reader.pos !== end) throw new RangeError("a field runs over the workload's end");
    return draft;
  }

  /** One entry of `services`: {key 1, value 2: PortList}. */
  #binding(resource: string, bytes: Uint8Array): Binding {
    const key = latin1(bytes);
    const known = this.#bindings.get(key);
    if (known) return known;
    const entry = Reader.create(bytes);
    let service = "";
    let list = NO_BYTES;
    while (entry.pos < entry.len) {
      const tag = entry.uint32();
      if (tag === ((1 << 3) | 2)) service = entry.string();
      else if (tag === ((2 << 3) | 2)) list = entry.bytes();
      else entry.skipType(tag & 7);
    }
    const { ports } = workload.PortList.decode(list);
    const binding: Binding = {
      service,
      ports: ports.map(({ servicePort, targetPort }) => ({
        service: portOf(resource, "service_port", servicePort ?? 0, 1),
        target: portOf(resource, "target_port", targetPort ?? 0, 0),
      })),
    };
    return share(this.#bindings, key, binding);
  }

  #profile(resource: string, draft: Draft): Profile {
    const { namespace, network, tunnel, trustDomain, serviceAccount, node, cluster, networkMode, policies } =
      draft;
    const { waypoint, gateway, locality } = draft;
    if (this.#last && haveSameProfile(this.#last.draft, draft)) return this.#last.profile;
    const key = `${namespace}\n${network}\n${tunnel}\n${trustDomain}\n${serviceAccount}\n${node}\n${cluster}\n${networkMode}\n${policies.join()}\n${latin1(waypoint)}\n${latin1(gateway)}\n${latin1(locality)}`;
    const known = this.#profiles.get(key);
    if (known) {
      this.#last = { draft: withOwnBytes(draft), profile: known };
      return known;
    }
    const { region, zone, subzone } = workload.Locality.decode(locality);
    const gatewayFrom = (bytes: Uint8Array) =>
      bytes.length === 0 ? undefined : gatewayOf(resource, workload.GatewayAddress.decode(bytes));
    const profile = share(this.#profiles, key, {
      namespace,
      network,
      region,
      zone,
      subzone,
      node,
      cluster,
      trustDomain: trustDomain || TRUST_DOMAIN,
      serviceAccount: serviceAccount || SERVICE_ACCOUNT,
      tunnel: TUNNELS[tunnel] ?? "none",
      waypoint: gatewayFrom(waypoint),
      gateway: gatewayFrom(gateway),
      hostNetwork: networkMode === 1,
      policies,
    });
    this.#last = { draft: withOwnBytes(draft), profile };
    return profile;
  }
}

function textOf({ workloadName, name, namespace, canonicalName, revision, cluster }: Draft): string {
  return `${workloadName || name};${namespace};${canonicalName};${revision};${cluster}`;
}

/** Whether what `WorkloadReader.profile` reads is the same in both. */
function haveSameProfile(one: Draft, other: Draft): boolean {
  return (
    one.namespace === other.namespace &&
    one.serviceAccount === other.serviceAccount &&
    one.node === other.node &&
    one.network === other.network &&
    one.tunnel === other.tunnel &&
    one.trustDomain === other.trustDomain &&
    one.cluster === other.cluster &&
    one.networkMode === other.networkMode &&
    one.policies.length === other.policies.length &&
    one.policies.every((policy, i) => policy === other.policies[i]) &&
    sameBytes(one.waypoint, other.waypoint) &&
    sameBytes(one.gateway, other.gateway) &&
    sameBytes(one.locality, other.locality)
  );
}

/** Copies what lies in the response, which would be kept as a whole. */
function withOwnBytes(draft: Draft): Draft {
  draft.waypoint = new Uint8Array(draft.waypoint);
  draft.gateway = new Uint8Array(draft.gateway);
  draft.locality = new Uint8Array(draft.locality);
  return draft;
}

function sameBytes(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && one.every((byte, i) => byte === other[i]);
}

/** The lists of one binding: most workloads serve one service, and share it with others. */
const alone = new WeakMap<Binding, readonly Binding[]>();

function shared(bindings: readonly Binding[]): readonly Binding[] {
  const [only] = bindings;
  if (only === undefined || bindings.length > 1) return bindings;
  let list = alone.get(only);
  if (!list) {
    list = bindings;
    alone.set(only, list);
  }
  return list;
}

function latin1(bytes: Uint8Array): string {
  return bytes.length === 0
    ? ""
    : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
}

function share<T>(map: Map<string, T>, key: string, value: T): T {
  if (map.size >= MOST_SHARED) map.clear();
  map.set(key, value);
  return value;
}
