/** Finds how peers see this machine: istiod sends the same endpoints to it and to its peers. */
import type { ResourceSink, ResourceType } from "../istiod/stream/sink.ts";
import { canonicalAddress } from "../mesh/address.ts";
import { envoy } from "./resources/envoy.gen.js";

/** The services (`HOST:PORT`, sorted) with this machine among their endpoints, by what peers send. */
export interface Reflected {
  /** Sidecars send plaintext. */
  plaintext: string[];
  /** Sidecars send mutual TLS; absent: not known. */
  mtls?: string[];
  /** Peers that speak HBONE send that, sidecars or not. */
  hbone: string[];
}

/** Of one EDS resource. */
interface Found {
  mtls: boolean;
  hbone: boolean;
}

/** Passes all calls to another sink, and looks for an address in the endpoints. */
export class Reflection implements ResourceSink {
  readonly #sink: ResourceSink;
  readonly #address: string;
  readonly #text: Buffer;
  readonly #changed: (reflected: Reflected) => void;
  /** By EDS name. */
  readonly #found = new Map<string, Found>();
  #dirty = false;

  /** `address` is canonical. `changed` is called after a push that changed the result; it must not throw. */
  constructor(sink: ResourceSink, address: string, changed: (reflected: Reflected) => void) {
    this.#sink = sink;
    this.#address = address;
    this.#text = Buffer.from(address);
    this.#changed = changed;
  }

  get reflected(): Reflected {
    const services = (fits: (found: Found) => boolean) =>
      [...new Set([...this.#found].filter(([, each]) => fits(each)).map(([name]) => serviceOf(name)))].sort();
    return {
      plaintext: services(({ mtls }) => !mtls),
      mtls: services(({ mtls }) => mtls),
      hbone: services(({ hbone }) => hbone),
    };
  }

  upsert(type: ResourceType, name: string, bytes: Uint8Array): void {
    this.#sink.upsert(type, name, bytes);
    if (type === "endpoints") this.#note(name, this.#look(bytes));
  }

  remove(type: ResourceType, name: string): void {
    this.#sink.remove(type, name);
    if (type === "endpoints") this.#note(name, undefined);
  }

  wanted(type: "endpoints" | "route"): ReadonlySet<string> {
    return this.#sink.wanted(type);
  }

  commit(push: { version: string; first: boolean }): void {
    this.#sink.commit(push);
    if (!this.#dirty) return;
    this.#dirty = false;
    this.#changed(this.reflected);
  }

  #note(name: string, found: Found | undefined): void {
    const before = this.#found.get(name);
    if (before?.mtls === found?.mtls && before?.hbone === found?.hbone) return;
    if (found === undefined) this.#found.delete(name);
    else this.#found.set(name, found);
    this.#dirty = true;
  }

  /**
   * undefined when the address is not among the endpoints. Only the few resources that contain its text are decoded.
   */
  #look(bytes: Uint8Array): Found | undefined {
    if (Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).indexOf(this.#text) < 0)
      return undefined;
    let found: Found | undefined;
    for (const { lbEndpoints } of envoy.ClusterLoadAssignment.decode(bytes).endpoints ?? []) {
      for (const { endpoint, metadata } of lbEndpoints ?? []) {
        const { socketAddress, envoyInternalAddress } = endpoint?.address ?? {};
        const address = socketAddress?.address ?? hostOf(envoyInternalAddress?.endpointId ?? "");
        if (canonicalAddress(address) !== this.#address) continue;
        const match = metadata?.filterMetadata?.["envoy.transport_socket_match"]?.fields;
        found ??= { mtls: false, hbone: false };
        found.mtls ||= match?.tlsMode?.stringValue === "istio";
        found.hbone ||= match?.tunnel?.stringValue === "http";
      }
    }
    return found;
  }
}

/** The address of `ADDRESS:PORT` or `[ADDRESS]:PORT`: istiod writes an endpoint of HBONE so. */
function hostOf(endpoint: string): string {
  return endpoint.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
}

/** `outbound|PORT|SUBSET|HOST` as HOST:PORT. */
function serviceOf(name: string): string {
  const [, port = "", , host = ""] = name.split("|");
  return host === "" ? name : `${host}:${port}`;
}
