/**
 * istio.workload.Workload, read from the wire: a mesh may have a hundred thousand, so no message tree is built, and what many
 * have in common becomes one object.
 */
import { Reader } from "protobufjs/minimal.js";
import { isText } from "../../istiod/stream/bytes.ts";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { checkEnum, openMessage, shortName } from "../../kernel-native/resources/wire.ts";
import { formatV4 } from "../../mesh/address.ts";
import { type Binding, type Profile, TUNNELS } from "./records.ts";
import { addressText, gatewayOf, portOf } from "./service.ts";
import { latin1, SharedBytes } from "./shared-bytes.ts";
import { workload } from "./workload.gen.js";

/** Where the trust domain is not given. */
const TRUST_DOMAIN = "cluster.local";
const SERVICE_ACCOUNT = "default";
/** Most shared profiles. Beyond them sharing begins anew. */
const MOST_SHARED = 65_536;
const SHARED_TEXTS = 4_096;
const SHARED_BINDINGS = 16_384;
const NO_BYTES: Uint8Array = new Uint8Array(0);
const NONE: readonly never[] = [];
const SEMICOLON = 59;

/** Where a text lies in the resource. */
class Span {
  start = 0;
  end = 0;

  clear(): void {
    this.start = this.end = 0;
  }

  read(reader: Reader): void {
    this.end = openMessage(reader);
    this.start = reader.pos;
    reader.pos = this.end;
  }
}

/** Fields of a workload that make its profile, as the message has them. */
class ProfileDraft {
  namespace = "";
  network = "";
  tunnel = 0;
  trustDomain = "";
  serviceAccount = "";
  waypoint = NO_BYTES;
  gateway = NO_BYTES;
  node = "";
  policies: readonly string[] = NONE;
  cluster = "";
  locality = NO_BYTES;
  networkMode = 0;

  clear(): void {
    this.namespace = this.network = this.trustDomain = this.serviceAccount = this.node = this.cluster = "";
    this.tunnel = this.networkMode = 0;
    this.waypoint = this.gateway = this.locality = NO_BYTES;
    this.policies = NONE;
  }
}

/** Takes a text in parts. */
export interface TextParts {
  append(bytes: Uint8Array, start: number, end: number): void;
  appendCode(code: number): void;
}

/**
 * Reads one workload after the other; its fields are the last one's. Everything that it gives is shared or its own, and
 * outlives the bytes; `writeText` needs the bytes.
 */
export class WorkloadReader {
  /** The only address, when it is IPv4; else undefined, and `addresses` has all. */
  v4: number | undefined;
  /** Canonical. */
  addresses: readonly string[] = NONE;
  /** Resolved when there is no address; else "". */
  hostname = "";
  healthy = true;
  weight = 1;
  profile!: Profile;
  bindings: readonly Binding[] = NONE;

  readonly #profiles = new Map<string, Profile>();
  readonly #texts = new SharedBytes<string>(SHARED_TEXTS);
  readonly #bindings = new SharedBytes<readonly [Binding]>(SHARED_BINDINGS);
  #draft = new ProfileDraft();
  /** The last workload's: the next one often has the same profile. */
  #last: { draft: ProfileDraft; profile: Profile } | undefined;
  readonly #name = new Span();
  readonly #namespace = new Span();
  readonly #canonicalName = new Span();
  readonly #revision = new Span();
  readonly #workloadName = new Span();
  readonly #cluster = new Span();
  readonly #uid = new Span();
  #bytes: Uint8Array = NO_BYTES;

  /** Reads the message from the reader's position up to `end`. Throws MalformedResource; the reader's errors go through. */
  read(resource: string, reader: Reader, end: number): void {
    this.#clear(reader.buf);
    const status = this.#fields(resource, reader, end);
    const { start: uidStart, end: uidEnd } = this.#uid;
    if (uidStart === uidEnd) throw new MalformedResource(shortName(resource), "the workload has no uid");
    if (!isText(resource, reader.buf, uidStart, uidEnd)) {
      // Names that are not ASCII are compared as texts.
      const uid = utf8(reader.buf, uidStart, uidEnd);
      if (uid !== resource)
        throw new MalformedResource(shortName(resource), `the message inside is called ${shortName(uid)}`);
    }
    checkEnum(resource, "tunnel_protocol", this.#draft.tunnel, TUNNELS.length - 1);
    checkEnum(resource, "status", status, 1);
    checkEnum(resource, "network_mode", this.#draft.networkMode, 1);
    this.healthy = status === 0;
    if (this.v4 !== undefined || this.addresses.length > 0) this.hostname = "";
    this.profile = this.#profile(resource);
  }

  /** `workload;namespace;canonical name;revision;cluster` of the last workload, as EDS metadata has it. */
  writeText(to: TextParts): void {
    const { start, end } = this.#workloadName;
    this.#write(start === end ? this.#name : this.#workloadName, to);
    to.appendCode(SEMICOLON);
    this.#write(this.#namespace, to);
    to.appendCode(SEMICOLON);
    this.#write(this.#canonicalName, to);
    to.appendCode(SEMICOLON);
    this.#write(this.#revision, to);
    to.appendCode(SEMICOLON);
    this.#write(this.#cluster, to);
  }

  #write({ start, end }: Span, to: TextParts): void {
    to.append(this.#bytes, start, end);
  }

  /** Lets go of the bytes: they are a whole response's. */
  release(): void {
    this.#bytes = NO_BYTES;
  }

  #clear(bytes: Uint8Array): void {
    this.#bytes = bytes;
    this.v4 = undefined;
    this.addresses = this.bindings = NONE;
    this.hostname = "";
    this.weight = 1;
    this.#draft.clear();
    this.#name.clear();
    this.#namespace.clear();
    this.#canonicalName.clear();
    this.#revision.clear();
    this.#workloadName.clear();
    this.#cluster.clear();
    this.#uid.clear();
  }

  /** Gives the status. */
  #fields(resource: string, reader: Reader, end: number): number {
    const draft = this.#draft;
    let status = 0;
    while (reader.pos < end) {
      const tag = reader.uint32();
      switch (tag) {
        case (1 << 3) | 2:
          this.#name.read(reader);
          break;
        case (2 << 3) | 2:
          draft.namespace = this.#text(reader, this.#namespace);
          break;
        case (3 << 3) | 2:
          this.#address(resource, reader);
          break;
        case (4 << 3) | 2:
          draft.network = this.#text(reader);
          break;
        case 5 << 3:
          draft.tunnel = reader.uint32();
          break;
        case (6 << 3) | 2:
          draft.trustDomain = this.#text(reader);
          break;
        case (7 << 3) | 2:
          draft.serviceAccount = this.#text(reader);
          break;
        case (8 << 3) | 2:
          draft.waypoint = reader.bytes();
          break;
        case (9 << 3) | 2:
          draft.node = this.#text(reader);
          break;
        case (10 << 3) | 2:
          this.#canonicalName.read(reader);
          break;
        case (11 << 3) | 2:
          this.#revision.read(reader);
          break;
        case (13 << 3) | 2:
          this.#workloadName.read(reader);
          break;
        case (16 << 3) | 2:
          draft.policies = [...draft.policies, this.#text(reader)];
          break;
        case 17 << 3:
          status = reader.uint32();
          break;
        case (18 << 3) | 2:
          draft.cluster = this.#text(reader, this.#cluster);
          break;
        case (19 << 3) | 2:
          draft.gateway = reader.bytes();
          break;
        case (20 << 3) | 2:
          this.#uid.read(reader);
          break;
        case (21 << 3) | 2:
          this.hostname = reader.string();
          break;
        case (22 << 3) | 2:
          this.#binding(resource, reader);
          break;
        case (24 << 3) | 2:
          draft.locality = reader.bytes();
          break;
        case 25 << 3:
          draft.networkMode = reader.uint32();
          break;
        case (27 << 3) | 2:
          // A weight of 0 is one that istiod does not mean; Envoy takes it as 1.
          this.weight = workload.UInt32Value.decode(reader.bytes()).value || 1;
          break;
        default:
          reader.skipType(tag & 7);
      }
    }
    if (reader.pos !== end) throw new RangeError("a field runs over the workload's end");
    return status;
  }

  #text(reader: Reader, span = scratch): string {
    span.read(reader);
    const { start, end } = span;
    if (start === end) return "";
    const { buf } = reader;
    return this.#texts.get(buf, start, end) ?? this.#texts.put(buf, start, end, utf8(buf, start, end));
  }

  #address(resource: string, reader: Reader): void {
    scratch.read(reader);
    const { start, end } = scratch;
    const { buf } = reader;
    if (end - start === 4 && this.v4 === undefined && this.addresses.length === 0) {
      const high = ((buf[start] ?? 0) << 24) | ((buf[start + 1] ?? 0) << 16);
      this.v4 = (high | ((buf[start + 2] ?? 0) << 8) | (buf[start + 3] ?? 0)) >>> 0;
      return;
    }
    const first = this.v4;
    this.v4 = undefined;
    this.addresses = [
      ...(first === undefined ? this.addresses : [formatV4(first)]),
      addressText(resource, buf.subarray(start, end)),
    ];
  }

  /** One entry of `services`: {key 1, value 2: PortList}. */
  #binding(resource: string, reader: Reader): void {
    scratch.read(reader);
    const { start, end } = scratch;
    const { buf } = reader;
    const only =
      this.#bindings.get(buf, start, end) ??
      this.#bindings.put(buf, start, end, [readBinding(resource, buf.subarray(start, end))]);
    this.bindings = this.bindings.length === 0 ? only : [...this.bindings, only[0]];
  }

  #profile(resource: string): Profile {
    const draft = this.#draft;
    if (this.#last && haveSameProfile(this.#last.draft, draft)) return this.#last.profile;
    const { namespace, network, tunnel, trustDomain, serviceAccount, node, cluster, networkMode, policies } =
      draft;
    const { waypoint, gateway, locality } = draft;
    const key = `${namespace}\n${network}\n${tunnel}\n${trustDomain}\n${serviceAccount}\n${node}\n${cluster}\n${networkMode}\n${policies.join()}\n${latin1(waypoint)}\n${latin1(gateway)}\n${latin1(locality)}`;
    let profile = this.#profiles.get(key);
    if (!profile) {
      const { region, zone, subzone } = workload.Locality.decode(locality);
      const gatewayFrom = (bytes: Uint8Array) =>
        bytes.length === 0 ? undefined : gatewayOf(resource, workload.GatewayAddress.decode(bytes));
      profile = {
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
      };
      if (this.#profiles.size >= MOST_SHARED) this.#profiles.clear();
      this.#profiles.set(key, profile);
    }
    this.#draft = this.#last?.draft ?? new ProfileDraft();
    this.#last = { draft: withOwnBytes(draft), profile };
    return profile;
  }
}

function utf8(bytes: Uint8Array, start: number, end: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString();
}

/** A place that is read and forgotten. */
const scratch = new Span();

function readBinding(resource: string, bytes: Uint8Array): Binding {
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
  return {
    service,
    ports: ports.map(({ servicePort, targetPort }) => ({
      service: portOf(resource, "service_port", servicePort ?? 0, 1),
      target: portOf(resource, "target_port", targetPort ?? 0, 0),
    })),
  };
}

/** Whether what `WorkloadReader.profile` reads is the same in both. */
function haveSameProfile(one: ProfileDraft, other: ProfileDraft): boolean {
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
function withOwnBytes(draft: ProfileDraft): ProfileDraft {
  draft.waypoint = new Uint8Array(draft.waypoint);
  draft.gateway = new Uint8Array(draft.gateway);
  draft.locality = new Uint8Array(draft.locality);
  return draft;
}

function sameBytes(one: Uint8Array, other: Uint8Array): boolean {
  if (one.length !== other.length) return false;
  for (let i = 0; i < one.length; i++) if (one[i] !== other[i]) return false;
  return true;
}
