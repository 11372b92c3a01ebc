/** istio.workload.Address: decodes a resource into a service or a workload, and checks it. */
import { Reader } from "protobufjs/minimal.js";
import { MalformedResource } from "../istiod/stream/sink.ts";
import { guarded, openMessage, shortName } from "../kernel-native/resources/wire.ts";
import type { ServiceRecord, WorkloadRecord } from "./records.ts";
import { readService } from "./service.ts";
import { WorkloadReader } from "./workload.ts";

/** Longest name of a resource, in characters. */
const LONGEST_NAME = 4096;
const WORKLOAD = 10;
const SERVICE = 18;

export type Address =
  | { kind: "workload"; workload: WorkloadRecord }
  | { kind: "service"; service: ServiceRecord };

/** Reads resources; shares what many of them have in common. */
export class AddressReader {
  readonly #workloads = new WorkloadReader();

  /**
   * `resource` is the resource's name: a workload's uid or a service's NAMESPACE/HOSTNAME. Throws MalformedResource for bytes
   * that are no such message, another name inside, an address that has neither 4 nor 16 bytes, a prefix beyond its family, a
   * port beyond 65535, and an enum value that is not in proto/istio_workload.proto.
   */
  read(resource: string, bytes: Uint8Array): Address {
    if (resource.length > LONGEST_NAME)
      throw new MalformedResource(shortName(resource), `its name has ${resource.length} characters`);
    return guarded(resource, () => {
      const reader = Reader.create(bytes);
      let found: Address | undefined;
      while (reader.pos < reader.len) {
        const tag = reader.uint32();
        if (tag === WORKLOAD) {
          const end = openMessage(reader);
          found = { kind: "workload", workload: this.#workloads.read(resource, reader, end) };
        } else if (tag === SERVICE) {
          const end = openMessage(reader);
          found = { kind: "service", service: readService(resource, bytes.subarray(reader.pos, end)) };
          reader.pos = end;
        } else reader.skipType(tag & 7);
      }
      if (!found) throw new MalformedResource(shortName(resource), "it is neither a workload nor a service");
      return found;
    });
  }
}
