/** Finds how peers see this machine: istiod sends the same endpoints to it and to its peers. */
import type { ResourceSink, ResourceType } from "../istiod/stream/sink.ts";
import { canonicalAddress } from "../mesh/address.ts";
import { envoy } from "./resources/envoy.gen.js";

/**
 * The services (`HOST:PORT`, sorted) with this machine among their endpoints, by whether peers send plaintext or
 * mutual TLS.
 */
export interface Reflected {
  plaintext: string[];
  mtls: string[];
}

/** Passes all calls to another sink, and looks for an address in the endpoints. */
export class Reflection implements ResourceSink {
  readonly #sink: ResourceSink;
  readonly #address: string;
  readonly #text: Buffer;
  readonly #changed: (reflected: Reflected) => void;
  /** Whether peers send mutual TLS, by EDS name. */
  readonly #found = new Map<string, boolean>();
  #dirty = false;

  /** `address` is canonical. `changed` is called after a push that changed the result; it must not throw. */
  constructor(sink: ResourceSink, address: string, changed: (reflected: Reflected) => void) {
    this.#sink = sink;
    this.#address = address;
    this.#text = Buffer.from(address);
    this.#changed = changed;
  }

  get reflected(): Reflected {
    const services = (mtls: boolean) =>
      [
        ...new Set([...this.#found].filter(([, each]) => each === mtls).map(([name]) => serviceOf(name))),
      ].sort();
    return { plaintext: services(false), mtls: services(true) };
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

  #note(name: string, mtls: boolean | undefined): void {
    if (this.#found.get(name) === mtls) return;
    if (mtls === undefined) this.#found.delete(name);
    else this.#found.set(name, mtls);
    this.#dirty = true;
  }

  /**
   * undefined when the address is not among the endpoints. Only the few resources that contain its text are decoded.
   */
  #look(bytes: Uint8Array): boolean | undefined {
    if (Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).indexOf(this.#text) < 0)
      return undefined;
    let found: boolean | undefined;
    for (const { lbEndpoints } of envoy.ClusterLoadAssignment.decode(bytes).endpoints ?? []) {
      for (const { endpoint, metadata } of lbEndpoints ?? []) {
        const address = endpoint?.address?.socketAddress?.address ?? "";
        if (canonicalAddress(address) !== this.#address) continue;
        const match = metadata?.filterMetadata?.["envoy.transport_socket_match"];
        found = (found ?? false) || match?.fields?.tlsMode?.stringValue === "istio";
      }
    }
    return found;
  }
}

/** `outbound|PORT|SUBSET|HOST` as HOST:PORT. */
function serviceOf(name: string): string {
  const [, port = "", , host = ""] = name.split("|");
  return host === "" ? name : `${host}:${port}`;
}
