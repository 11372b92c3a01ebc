/** istio.workload.Address: decodes a resource into a service or a workload, and checks it. */
import { Reader } from "protobufjs/minimal.js";
import { MalformedResource } from "../../istiod/stream/sink.ts";
import { guarded, openMessage, shortName } from "../../kernel-native/resources/wire.ts";
import type { ServiceRecord } from "./records.ts";
import { readService } from "./service.ts";
import { WorkloadReader } from "./workload.ts";

/** Longest name of a resource, in characters. */
const LONGEST_NAME = 4096;
const WORKLOAD = 10;
const SERVICE = 18;

const NO_BYTES = new Uint8Array(0);

/** Reads resources; shares what many of them have in common. */
export class AddressReader {
  /** The last workload. */
  readonly workload = new WorkloadReader();
  readonly #reader = Reader.create(NO_BYTES);

  /**
   * `resource` is the resource's name: a workload's uid or a service's NAMESPACE/HOSTNAME. Throws MalformedResource for bytes
   * that are no such message, another name inside, an address that has neither 4 nor 16 bytes, a prefix beyond its family, a
   * port beyond 65535, and an enum value that is not in proto/istio_workload.proto. Gives the service, or "workload" when it was
   * one, which `workload` then holds until the next call. Call `release` afterwards.
   */
  read(resource: string, bytes: Uint8Array): ServiceRecord | "workload" {
    if (resource.length > LONGEST_NAME)
      throw new MalformedResource(shortName(resource), `its name has ${resource.length} characters`);
    return guarded(resource, () => {
      const reader = this.#reader;
      reader.buf = bytes;
      reader.pos = 0;
      reader.len = bytes.length;
      let found: ServiceRecord | "workload" | undefined;
      while (reader.pos < reader.len) {
        const tag = reader.uint32();
        if (tag === WORKLOAD) {
          const end = openMessage(reader);
          this.workload.read(resource, reader, end);
          found = "workload";
        } else if (tag === SERVICE) {
          const end = openMessage(reader);
          found = readService(resource, bytes.subarray(reader.pos, end));
          reader.pos = end;
        } else reader.skipType(tag & 7);
      }
      if (!found) throw new MalformedResource(shortName(resource), "it is neither a workload nor a service");
      return found;
    });
  }

  /** Lets go of the bytes of the last resource, which are a whole response's. `workload.writeText` needs them. */
  release(): void {
    this.#reader.buf = NO_BYTES;
    this.workload.release();
  }
}
